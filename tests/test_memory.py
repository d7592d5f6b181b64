"""The report before training: sizes that can be counted by hand, and a peak that training then reaches."""

from __future__ import annotations

import random
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from support.attention import skip_if_torch_cannot_attend
from support.tiny import gemma_folder, text_backbone
from support.trainers import quiet_trainer
from swirl_lightning import SWIRL, AdapterConfig, GRPOConfig, Transition
from swirl_lightning.callbacks import MemoryReport, PhaseSwitch
from swirl_lightning.data import TransitionDataModule
from swirl_lightning.engine.drawing import SamplingConfig
from swirl_lightning.engine.noise import uniforms
from swirl_lightning.engine.tensor_memory import peak_of
from swirl_lightning.memory import LongestPair, MicroBatch, _Estimator, size_of
from swirl_lightning.roles import Role
from swirl_lightning.rollout_engines import Generate
from swirl_lightning.training.learners import BestOfN

CPU = torch.device("cpu")
HIDDEN, LAYERS, RANK = 128, 2, 8
PAIR = LongestPair([40] * 47, [41] * 47)


class Letters(TransitionDataModule):
    """States of 47 letters."""

    def load_split(self, split):
        rng = random.Random(0)
        text = lambda: "".join(rng.choice("abcdef") for _ in range(47))  # noqa: E731
        return [Transition(text(), text(), "turn left a", id=str(n)) for n in range(16)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return gemma_folder(tmp_path_factory.mktemp("memory"), hidden=HIDDEN, layers=LAYERS)


@pytest.fixture(scope="module")
def narrow(tmp_path_factory):
    """Masks outweigh all else in it."""
    return gemma_folder(tmp_path_factory.mktemp("narrow"), hidden=32, layers=2)


def swirl(folder, **kwargs):
    names = ("quantization", "gradient_checkpointing", "dequantize_once", "speculative")
    options = {k: kwargs.pop(k) for k in names if k in kwargs}
    backbone = text_backbone(folder, max_state_tokens=48, max_action_tokens=12, **options)
    return SWIRL(backbone, lora=AdapterConfig(r=RANK), **{"grpo": GRPOConfig(group_size=6)} | kwargs)


def test_a_4_bit_base_counts_as_many_parameters_as_a_plain_one(folder):
    sizes = {}
    for quantization in ("nf4", None):
        model = text_backbone(folder, quantization=quantization).load_model()
        sizes[quantization] = size_of(model.parameters())
    by_hand = 259 * HIDDEN + HIDDEN + LAYERS * (2 * HIDDEN + 2 * HIDDEN**2 + 2 * HIDDEN * HIDDEN // 2 + 6 * HIDDEN**2)
    assert sizes[None].parameters == sizes["nf4"].parameters == by_hand
    assert sizes[None].bytes == 4 * by_hand
    linear = LAYERS * 9 * HIDDEN**2
    packed = linear // 2 + linear // 64  # half a byte a weight, a byte of scale for 64 of them
    assert 0 < sizes["nf4"].bytes - 4 * (by_hand - linear) - packed < 0.2 * packed  # scales of scales, code books


def test_peak_counts_what_lives_at_once():
    def run():
        a = torch.ones(250, 1000)
        b = a * 2
        del a
        return (b + 1).view(-1)[:5]

    assert peak_of(run, CPU) == 2 * 1_000_000


@pytest.mark.parametrize(
    ("phase", "kwargs", "sizes"),
    [
        ("fwm", {"quantization": "nf4", "anchor_weight": 0.5}, {}),
        ("fwm", {"quantization": None, "rollout_engine": Generate(), "max_tokens_per_forward": 300}, {"batch_size": 4}),
        ("fwm", {"quantization": None, "learner": BestOfN(threshold=-100.0)}, {"batch_size": 4}),
        (
            "fwm",
            {"quantization": None, "grpo": GRPOConfig(group_size=2), "gradient_checkpointing": True},
            {"batch_size": 1, "labelled_per_batch": 8},
        ),
        (  # of all pairs of a step, z are sampled together
            "fwm",
            {"quantization": None, "grpo": GRPOConfig(group_size=2), "max_cached_tokens": 100_000}
            | {"gradient_checkpointing": True, "speculative": False},
            {"batch_size": 1, "pairs_per_step": 16},
        ),
        ("bootstrap", {"quantization": None}, {"labelled_per_batch": 4}),
        ("idm", {"quantization": None, "gradient_checkpointing": True}, {}),
        ("warmup", {"quantization": "nf4"}, {}),
    ],
)
def test_the_estimate_is_within_a_quarter_of_what_training_takes(folder, tmp_path, phase, kwargs, sizes):
    module, callback = swirl(folder, **kwargs), MemoryReport(samples=2)
    switch = PhaseSwitch(1, iterations=0) if phase == "warmup" else PhaseSwitch(0, [phase], 1)

    def trainer(*callbacks, **settings):
        return quiet_trainer(tmp_path, switch, *callbacks, max_epochs=-1, limit_val_batches=0, **settings)

    module.configure_model()
    before = {k: v.clone() for k, v in module.adapters.state_dict().items()}
    random_state = torch.get_rng_state()
    data = Letters(**{"batch_size": 2, "warmup_batch_size": 4} | sizes)
    trainer(callback, limit_train_batches=0).fit(module, data)
    assert callback.estimate is not None
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(torch.equal(before[k], v) for k, v in module.adapters.state_dict().items())
    assert all(p.grad is None for p in module.parameters())

    measured = peak_of(lambda: trainer(limit_train_batches=max(2, data.accumulation(phase))).fit(module, data), CPU)
    estimated = max(callback.estimate.steps.values()) + callback.estimate.training
    assert 0.75 < estimated / measured < 1.25, (estimated, measured, callback.estimate.steps)


@pytest.mark.parametrize(
    ("dtype", "attention", "checkpointed"),  # each two of the three together
    [
        ("float32", "sdpa", True),
        ("float32", "eager", False),
        ("bfloat16", "sdpa", False),
        ("bfloat16", "eager", True),
    ],
)
def test_masks_count_as_often_as_attention_copies_them(narrow, dtype, attention, checkpointed):
    """Rows that are padded and share nothing: what grows with the square of a row outweighs all else."""
    skip_if_torch_cannot_attend(getattr(torch, dtype))
    options = {"dtype": dtype, "attn_implementation": attention, "gradient_checkpointing": checkpointed}
    backbone = text_backbone(narrow, quantization=None, max_state_tokens=160, max_action_tokens=12, **options)
    module = SWIRL(backbone, lora=AdapterConfig(r=2))
    module.configure_model()
    models = module.models
    models.engine.config = replace(models.engine.config, shared_attention=False)
    letter, end = models.grammars["fwm"].allowed[0], 160
    states = [[letter] * (end - n) for n in range(2, 6)]
    estimator = _Estimator(module, LongestPair(states[0], states[0]))
    actions = [[letter] * 8] * len(states)

    def update():
        scored = models.fwm.log_prob(states, states, actions, training=True)
        torch.autograd.grad(scored.values.sum(), module.adapters.parameters(models.fwm.adapter))

    def reward():
        models.idm.log_prob(actions[:2], states[:2], states)

    for run, told in (
        (update, estimator._supervised(len(states), (Role.FWM,))),
        (reward, estimator._reward(Role.IDM, 2, 2)),
    ):
        run()
        assert told == pytest.approx(peak_of(run, CPU), rel=0.25)


@pytest.mark.parametrize("long", ["warmup", "state_only", "validation"])
def test_the_longest_states_may_be_in_any_split(folder, tmp_path, long):
    class Uneven(Letters):
        def load_split(self, split):
            rows = super().load_split(split)
            return rows if split == long else [Transition("ab", "ba", "a", id=row.id) for row in rows]

    class Noted(MemoryReport):
        def _longest(self, module, data):
            self.longest = super()._longest(module, data)
            return self.longest

    callback = Noted()
    run = quiet_trainer(tmp_path, PhaseSwitch(1, iterations=1), callback, max_epochs=-1, limit_train_batches=0)
    run.fit(swirl(folder, quantization=None), Uneven(batch_size=2))
    assert (len(callback.longest.before), len(callback.longest.after)) == (47, 47)


@pytest.mark.parametrize(
    ("switch", "epoch", "max_epochs", "told"),
    [
        (PhaseSwitch(5, ["fwm", "idm"], 3), 0, -1, ["warmup", "fwm", "idm"]),
        (PhaseSwitch(5, ["fwm", "idm"], 3), 4, None, ["warmup", "fwm", "idm"]),
        (PhaseSwitch(5, ["fwm", "idm"], 3), 9, -1, ["fwm", "idm"]),
        (PhaseSwitch(5, ["fwm", "idm"], None), 10, -1, ["idm", "fwm"]),
        (PhaseSwitch(5, ["fwm", "idm"], 3), 11, -1, []),
        (PhaseSwitch(5, ["fwm", "idm"], 3), 0, 1, ["warmup"]),
        (PhaseSwitch(5, ["fwm"], 0), 0, -1, ["warmup"]),
    ],
)
def test_the_phases_that_will_run(switch, epoch, max_epochs, told):
    data = Letters()
    data.trainer = SimpleNamespace(callbacks=[switch], max_epochs=max_epochs, fast_dev_run=False)
    assert data.phases(epoch) == told


def test_a_resumed_run_is_told_of_the_phases_that_are_left(folder, tmp_path):
    def run(*callbacks, iterations=1, **settings):
        switch = PhaseSwitch(1, ["fwm"], iterations=iterations)
        return quiet_trainer(tmp_path, switch, *callbacks, max_epochs=-1, limit_val_batches=0, **settings)

    data, saves = Letters(batch_size=2), ModelCheckpoint(tmp_path, save_last=True, save_top_k=0)
    run(saves, iterations=0, limit_train_batches=1).fit(swirl(folder, quantization=None), data)
    for iterations, told in ((1, {"fwm rollout", "fwm reward", "fwm update"}), (0, None)):
        callback, last = MemoryReport(samples=1), tmp_path / "last.ckpt"
        resumed = run(callback, iterations=iterations, limit_train_batches=1)
        resumed.fit(swirl(folder, quantization=None), data, ckpt_path=last)
        assert (callback.estimate and set(callback.estimate.steps)) == told


def test_memory_that_runs_out_in_the_report_is_told(folder, tmp_path, monkeypatch):
    """Training may find a way with less at a time, and begins with its own budget."""

    def none_left(*args, **kwargs):
        module.models.engine.scoring_budget.tokens = 7
        raise torch.OutOfMemoryError("none left")

    monkeypatch.setattr("swirl_lightning.memory._Estimator.steps", none_left)
    module, callback = swirl(folder, quantization=None), MemoryReport(samples=1)
    run = quiet_trainer(tmp_path, PhaseSwitch(1, iterations=0), callback, max_epochs=-1, limit_val_batches=0)
    with pytest.warns(UserWarning, match="not estimated, for a few rows alone do not fit: none left"):
        run.fit(module, Letters(batch_size=1))
    assert callback.estimate is None
    assert module.models.engine.scoring_budget.tokens is None


def test_the_report_names_what_it_counts(folder, tmp_path, caplog):
    module, callback = swirl(folder, shared_weights=True), MemoryReport(samples=1)
    with caplog.at_level("INFO"):
        switch = PhaseSwitch(1, iterations=1)
        run = quiet_trainer(tmp_path, switch, callback, max_epochs=-1, limit_train_batches=0, limit_val_batches=0)
        run.fit(module, Letters(batch_size=1))
    estimate = callback.estimate
    assert set(estimate.steps) == {
        "warmup",
        *(f"{r} {w}" for r in ("fwm", "idm") for w in ("rollout", "reward", "update")),
    }
    per_layer = {"q": 1, "o": 1, "k": 0.5, "v": 0.5}
    attention = sum(RANK * (HIDDEN + HIDDEN * out) for out in per_layer.values())
    mlp = 3 * RANK * (HIDDEN + 2 * HIDDEN)
    assert estimate.adapters["world"].parameters == LAYERS * (attention + mlp)
    assert estimate.training == 3 * 4 * LAYERS * (attention + mlp)  # a gradient and Adam's two moments
    assert estimate.trainable == ("world",)
    text = str(estimate)
    for word in ("base: 328,", "world_ref 32,768 (frozen)", "estimated peak", "GiB per device"):
        assert word in text
    with pytest.raises(ValueError, match="samples"):
        MemoryReport(samples=0)


def test_rollouts_keep_a_cache_where_training_checkpoints_its_layers(folder):
    told = []
    for on in (False, True):
        module = swirl(folder, quantization=None, gradient_checkpointing=on)
        module.configure_model()
        assert module.adapters.model.training
        told.append([module.models.of(role).cache_bytes() for role in Role])
    width = 2 * HIDDEN // 2 * 4  # a key and a value, of half as many heads, in float32
    assert told == [[(LAYERS * width, LAYERS)] * 2] * 2


def test_a_budget_bounds_what_runs_at_one_time(folder):
    told = []
    for budget in (None, 800, 64):  # all eight pairs, two of them, part of one
        module = swirl(folder, quantization=None, max_tokens_per_forward=budget)
        module.configure_model()
        told.append(_Estimator(module, PAIR)._update(Role.FWM, MicroBatch(8, 8, 0, 8), 6))
    assert told[0] > 2.5 * told[1] > 5 * told[2] > 0


@pytest.mark.parametrize("kept", [True, False])  # where weights are kept, adapters are merged into them while sampling
def test_a_rollout_takes_what_the_estimate_says(folder, kept):
    module = swirl(folder, quantization="nf4", dequantize_once=kept, speculative=False)
    module.configure_model()
    model, state = module.models.fwm, PAIR.before
    actions = [[40] * 11] * 4

    def rollout():
        model.sample([state] * 4, actions, [str(n) for n in range(4)], SamplingConfig(), 6)

    told = _Estimator(module, PAIR)._rollout(Role.FWM, 4, 6)
    rollout()
    assert 1 < told / peak_of(rollout, CPU) < 1.5


def test_rollouts_from_drafts_stay_below_the_estimate(folder):
    module, draw = swirl(folder, quantization=None), random.Random(0)
    module.configure_model()
    engine, grammar = module.models.engine, module.models.grammars["fwm"]
    count, group, length = 4, 8, grammar.max_length
    prompts = [[draw.randrange(10, 200) for _ in range(40)] for _ in range(count)]
    noise = uniforms([str(n) for n in range(count)], 1, length).repeat_interleave(group, 0)
    noise[:, 1:3] = uniforms(["apart"], count * group, 2)  # so that rollouts differ, and go on as much alike
    before = [draw.randrange(10, 200) for _ in range(40 - len(module.prompts.fwm([], [])))]
    estimate = _Estimator(module, LongestPair(before, before))._rollout(Role.FWM, count, group)
    with module.adapters.use(module.adapters.names[0]):
        rows = engine.sample(grammar, prompts, noise, SamplingConfig()).rows()
        drafts = rows[::group]
        peak = peak_of(lambda: engine.sample(grammar, prompts, noise, SamplingConfig(), drafts), CPU)
    assert peak < estimate
