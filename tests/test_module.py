"""The LightningModule under a real Trainer, on a real NF4 base with real adapters."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint

from support.swirl import CONSTANT, SGD, build, equal, randomize, snapshot, trainer
from support.tiny import gemma_folder
from support.world import Digits
from swirl_lightning import GRPOConfig, OptimConfig, PhaseOptimConfig, SamplingConfig
from swirl_lightning.callbacks import PhaseSwitch
from swirl_lightning.roles import Role
from swirl_lightning.training.rewards import MeanLogProb
from swirl_lightning.training.rollouts import Update
from swirl_lightning.world_models import WorldModel


def of(state, name):
    return {k: v for k, v in state.items() if k.startswith(f"{name}.")}


class Watch(Callback):
    """Adapters at the start and the end of every epoch, and gradients before every step."""

    def __init__(self):
        self.starts, self.ends, self.gradients = [], [], []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx == 0:
            self.starts.append(snapshot(pl_module))

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.gradients.append(
            (
                pl_module.phase.name,
                {
                    n: [p.grad is not None and bool(p.grad.any()) for p in pl_module.adapters.parameters(n)]
                    for n in pl_module.adapters.names
                },
                [n for n, p in pl_module.named_parameters() if p.grad is not None and "lora_" not in n],
            )
        )

    def on_train_epoch_end(self, trainer, pl_module):
        self.ends.append(snapshot(pl_module))


def base_state(module):
    return {n: p.detach().clone() for n, p in module.named_parameters() if "lora_" not in n}


@pytest.fixture(scope="module")
def watched(gemma_path, tmp_path_factory):
    """Warm-up, Phase I, Phase II, Phase I, Phase II."""
    module, watch = build(gemma_path, anchor_weight=0.5), Watch()
    module.configure_model()
    before = base_state(module)
    fit = trainer(tmp_path_factory.mktemp("fit"), PhaseSwitch(1, iterations=2), [watch])
    fit.fit(module, Digits(batch_size=8))
    return module, watch, before, fit


def test_gradients_are_on_every_parameter_of_the_policy_and_nowhere_else(watched):
    _, watch, _, _ = watched
    seen = set()
    for phase, gradients, base in watch.gradients[
        1:
    ]:  # at the very first step every lora_B is 0, and so lora_A's gradient
        policies = {"warmup": {"fwm", "idm"}}.get(phase, {phase})
        seen.add(phase)
        for name, flags in gradients.items():
            assert all(flags) if name in policies else not any(flags), (phase, name)
        assert not base
    assert seen == {"warmup", "fwm", "idm"}


def test_only_the_policy_moves_in_a_phase(watched):
    _, watch, _, _ = watched
    for epoch, moving in enumerate([{"fwm", "idm"}, {"fwm"}, {"idm"}, {"fwm"}, {"idm"}]):
        for name in ("fwm", "idm", "fwm_ref", "idm_ref"):
            still = equal(of(watch.starts[epoch], name), of(watch.ends[epoch], name))
            assert still == (name not in moving), (epoch, name)


def test_references_are_the_policies_at_the_start_of_the_iteration(watched):
    _, watch, _, _ = watched
    for first in (1, 3):
        for role in ("fwm", "idm"):
            for epoch in (first, first + 1):
                reference = of(watch.starts[epoch], f"{role}_ref")
                policy = of(watch.starts[first], role)
                assert all(torch.equal(reference[k.replace(role, f"{role}_ref", 1)], v) for k, v in policy.items())


def test_the_base_is_bit_identical_after_training(watched):
    module, _, before, _ = watched
    after = base_state(module)
    assert before.keys() == after.keys()
    # packed 4-bit weights are bytes in floating-point clothes, some of them NaN: compare the bytes
    assert all(torch.equal(before[k].view(torch.uint8), after[k].view(torch.uint8)) for k in before)


def test_the_base_is_really_4_bit(watched):
    import bitsandbytes as bnb

    module, *_ = watched
    layers = [m for m in module.modules() if isinstance(m, bnb.nn.Linear4bit)]
    assert layers
    assert all(m.weight.quant_state.quant_type == "nf4" and m.weight.quant_state.nested for m in layers)
    assert not any(m.support_avx512bf16_for_cpu for m in layers)


def test_training_ends_with_the_schedule(watched):
    *_, fit = watched
    assert fit.current_epoch == 5


@pytest.mark.parametrize(
    ("phase", "normalization", "scale"),
    [
        ("warmup", "token", "group"),
        ("bootstrap", "token", "group"),
        ("fwm", "token", "group"),
        ("idm", "sequence", "group"),
        ("fwm", "constant", "group"),
        ("idm", "token", "batch"),
        ("fwm", "sequence", "batch"),
    ],
)
def test_accumulation_equals_one_large_batch(gemma_path, tmp_path, phase, normalization, scale):
    ends = []
    for size, k in ((8, 1), (2, 4)):
        module = build(
            gemma_path,
            grpo=GRPOConfig(group_size=4, loss_normalization=normalization, advantage_scale=scale),
            anchor_weight=0.3,
            quantization=None,
            optimizer=SGD,
            optim=CONSTANT,
        )
        switch = PhaseSwitch(1, iterations=0) if phase == "warmup" else PhaseSwitch(0, [phase], iterations=1)
        randomize(module)
        trainer(tmp_path, switch, accumulate_grad_batches=k, gradient_clip_val=0.5).fit(
            module, Digits(size=16 if normalization == "token" else 8, batch_size=size)
        )
        ends.append(snapshot(module))
    whole, parts = ends
    for key in whole:
        torch.testing.assert_close(whole[key], parts[key], atol=1e-5, rtol=1e-5)


class EvenGroupsAlike(MeanLogProb):
    """Reward that is equal for all members of every second group."""

    def __call__(self, scored):
        rewards = super().__call__(scored).view(-1, scored.group_size)
        rewards[::2] = rewards[::2].mean(1, keepdim=True)
        return rewards.flatten()


@pytest.mark.parametrize(("phase", "normalization"), [("fwm", "token"), ("idm", "sequence"), ("fwm", "constant")])
def test_groups_without_signal_are_not_run_and_count_all_the_same(
    gemma_path, tmp_path, monkeypatch, phase, normalization
):
    ends, ran, score_ids = [], [], WorldModel.score_ids

    def watch(self, prompts, completions, **kwargs):
        if kwargs.get("training"):
            ran[-1].append(len(prompts))
        return score_ids(self, prompts, completions, **kwargs)

    monkeypatch.setattr(WorldModel, "score_ids", watch)
    for skipping in (True, False):
        module = build(
            gemma_path,
            grpo=GRPOConfig(group_size=4, beta=0, loss_normalization=normalization, num_iterations=2),
            reward=EvenGroupsAlike(),
            quantization=None,
            optimizer=SGD,
            optim=CONSTANT,
        )
        randomize(module)
        if not skipping:
            monkeypatch.setattr(Update, "teaching_rows", lambda self: list(range(len(self.prompts))))
        ran.append([])
        trainer(tmp_path, PhaseSwitch(0, [phase], iterations=1)).fit(module, Digits(size=8, batch_size=4))
        ends.append(snapshot(module))
    assert ran == [[8] * 4, [16] * 4]
    for key in ends[0]:
        torch.testing.assert_close(ends[0][key], ends[1][key], atol=1e-6, rtol=1e-5)


def test_rollouts_of_a_step_are_sampled_together_and_learnt_from_as_batch_by_batch(gemma_path, tmp_path):
    """Noise belongs to the pair: four batches of two pairs, within a budget for all of them, and for some."""
    ends, drawn, widest = [], [], []
    for tokens in (None, 4000, 220):
        module = build(
            gemma_path,
            quantization=None,
            optimizer=SGD,
            optim=CONSTANT,
            anchor_weight=0.3,
            grpo=GRPOConfig(group_size=4, idm_group_size=3),
            max_cached_tokens=tokens,
        )
        randomize(module)
        rows, steps = [], []

        class Keep(Callback):
            def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, rows=rows):
                rows.append((batch.index, outputs["rollouts"].completions.rows(), outputs["rollouts"].actions))

        handle = module.models.engine.trunk.register_forward_pre_hook(
            lambda m, a, k, steps=steps: steps.append(k["input_ids"].numel()) if k["use_cache"] else None,
            with_kwargs=True,
        )
        precision = {"precision": "64-true"}  # so that rounding, which depends on the batch, flips no sampled token
        run = trainer(tmp_path, PhaseSwitch(0, iterations=1), [Keep()], **precision)
        run.fit(module, Digits(size=16, batch_size=2, pairs_per_step=8))
        handle.remove()
        ends.append(snapshot(module))
        drawn.append(rows)
        widest.append(len(steps))
    assert drawn[1] == drawn[2] == drawn[0]
    assert len(drawn[0]) == 16
    for end in ends[1:]:
        for key, value in ends[0].items():
            torch.testing.assert_close(end[key], value, atol=1e-9, rtol=0)
    assert widest[1] < widest[2] < widest[0]  # passes of the trunk while sampling


def test_a_backward_pass_without_memory_names_the_cure(gemma_path, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    module = build(gemma_path)
    monkeypatch.setattr(torch.Tensor, "backward", full)
    # 2 groups of 4, padded to the longest: half of what did run
    with pytest.raises(torch.OutOfMemoryError, match=r"memory\. .*model.max_tokens_per_forward to [1-9]\d+ or less"):
        trainer(tmp_path, PhaseSwitch(0, ["fwm"], iterations=1)).fit(module, Digits(size=2, batch_size=2))


def test_a_latent_action_is_judged_as_it_was_sampled(gemma_path, tmp_path, monkeypatch):
    """The same holds for an action that reached max_length before its EOS."""
    module = build(gemma_path, quantization=None)
    randomize(module)
    sample_ids, score_ids = WorldModel.sample_ids, WorldModel.score_ids
    sampled, judged = [], []

    def watch_sample(self, *args):
        out = sample_ids(self, *args)
        sampled.extend(out.rows() if self.role == "idm" else [])
        return out

    def watch_score(self, prompts, completions, **kwargs):
        judged.extend(completions[:: kwargs["group_size"]] if self.role == "idm" else [])
        return score_ids(self, prompts, completions, **kwargs)

    monkeypatch.setattr(WorldModel, "sample_ids", watch_sample)
    monkeypatch.setattr(WorldModel, "score_ids", watch_score)
    trainer(tmp_path, PhaseSwitch(0, ["fwm"], iterations=1)).fit(module, Digits(size=8, batch_size=4))
    longest = module.models.grammars["idm"].max_length
    assert judged == sampled
    assert any(len(row) == longest and row[-1] != 1 for row in judged)


def test_gradient_checkpointing_changes_nothing(gemma_path, tmp_path):
    ends = []
    for on in (False, True):
        module = build(gemma_path, gradient_checkpointing=on, quantization=None, optimizer=SGD, optim=CONSTANT)
        randomize(module)
        trainer(tmp_path, PhaseSwitch(0, iterations=1)).fit(module, Digits(size=8, batch_size=8))
        ends.append(snapshot(module))
    for key in ends[0]:
        torch.testing.assert_close(ends[0][key], ends[1][key], atol=2e-5, rtol=1e-4)


def test_policy_reuse_clips_and_is_exact_on_its_first_pass(gemma_path, tmp_path):
    """num_iterations 2: each window is given twice; on the second pass the ratio has left 1."""
    module = build(gemma_path, grpo=GRPOConfig(group_size=4, num_iterations=2, epsilon=0.01))
    randomize(module)
    seen = []

    class Log(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            seen.append((batch.index, batch.replay, float(trainer.callback_metrics["fwm/clip_share"])))

    trainer(tmp_path, PhaseSwitch(0, ["fwm"], iterations=1), [Log()]).fit(module, Digits(size=16, batch_size=8))
    assert [(i, r) for i, r, _ in seen] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert [share > 0 for *_, share in seen] == [False, True, False, True]
    assert not module._updates


def test_a_temperature_that_moves_leaves_the_ratios_of_earlier_rollouts_at_one(gemma_path, tmp_path):
    still = PhaseOptimConfig(*[OptimConfig(1e-12)] * 3)
    module, shares = build(gemma_path, grpo=GRPOConfig(group_size=4, num_iterations=2, epsilon=0.01), optim=still), []
    randomize(module)

    class Cool(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            shares.append(float(trainer.callback_metrics["fwm/clip_share"]))
            pl_module.policy_sampling[Role.FWM] = SamplingConfig(0.5, 1.0)

    trainer(tmp_path, PhaseSwitch(0, ["fwm"], iterations=1), [Cool()]).fit(module, Digits(size=8, batch_size=8))
    assert shares == [0.0, 0.0]


def test_shared_weights_train_one_adapter_and_freeze_its_copy_for_the_reward(gemma_path, tmp_path):
    module, watch = build(gemma_path, shared_weights=True), Watch()
    trainer(tmp_path, callbacks=[watch]).fit(module, Digits(size=16, batch_size=8))
    assert module.adapters.trainable == ("world",)
    for epoch in (1, 2):
        assert not equal(of(watch.starts[epoch], "world"), of(watch.ends[epoch], "world"))
        assert equal(of(watch.starts[epoch], "world_reward"), of(watch.ends[epoch], "world_reward"))
        assert equal(of(watch.starts[epoch], "world_ref"), of(watch.ends[epoch], "world_ref"))
    for copy in ("world_reward", "world_ref"):
        for epoch in (1, 2):  # frozen at the start of each phase
            frozen = {k.replace(copy, "world", 1): v for k, v in of(watch.starts[epoch], copy).items()}
            assert equal(frozen, of(watch.starts[epoch], "world"))


def test_fast_dev_run_validation_test_and_predict(gemma_path, tmp_path):
    module, data = build(gemma_path), Digits(size=16, batch_size=8)
    trainer(tmp_path, fast_dev_run=True, limit_val_batches=1.0).fit(module, data)
    run = trainer(tmp_path)
    (metrics,) = run.test(module, data, verbose=False)
    assert {
        "test/fwm/greedy/exact_match",
        "test/idm/sampled/exact_match",
        "test/identifiability",
    } <= metrics.keys()
    rows = [row for batch in run.predict(module, data) for row in batch]
    assert sorted(row["id"] for row in rows) == sorted(f"test-{n}" for n in range(16))


def test_an_fwm_alone_predicts_nothing_without_an_action(gemma_path, tmp_path):
    class Bare(Digits):
        def load_split(self, split):
            return [replace(row, action=None) if row.id.endswith("-3") else row for row in super().load_split(split)]

    module = build(gemma_path, roles=("fwm",))
    with pytest.raises(ValueError, match=r"record .test-3. has no action .*roles"):
        trainer(tmp_path).predict(module, Bare(size=8, batch_size=8))
    assert "predicted_state" in trainer(tmp_path).predict(module, Digits(size=8, batch_size=8))[0][0]


def test_a_checkpoint_holds_the_adapters_and_never_the_base(gemma_path, tmp_path):
    module = build(gemma_path)
    fit = trainer(tmp_path, callbacks=[ModelCheckpoint(tmp_path / "c", save_last=True)])
    fit.fit(module, Digits(size=16, batch_size=8))
    state = torch.load(tmp_path / "c" / "last.ckpt", weights_only=True)
    assert set(state["state_dict"]) == set(snapshot(module))
    assert state["swirl"]["label"] == "SWIRL iteration 1"
    fresh = build(gemma_path, seed=1)
    trainer(tmp_path).validate(fresh, Digits(size=16), ckpt_path=tmp_path / "c" / "last.ckpt", verbose=False)
    assert equal(snapshot(fresh), snapshot(module))

    other = build(gemma_folder(tmp_path / "other", seed=9))
    with pytest.raises(ValueError, match="has other weights"):
        trainer(tmp_path).validate(other, Digits(), ckpt_path=tmp_path / "c" / "last.ckpt")
    deeper = build(gemma_folder(tmp_path / "deeper", layers=3))
    with pytest.raises(ValueError, match="has other architecture"):
        trainer(tmp_path).validate(deeper, Digits(), ckpt_path=tmp_path / "c" / "last.ckpt")


def test_states_are_tokenised_once_for_all_runs(gemma_path, tmp_path, monkeypatch):
    asked, counts = [], []
    for _ in range(2):
        module = build(gemma_path, token_cache=str(tmp_path / "tokens"))
        encode = module.backbone.encode_states
        monkeypatch.setattr(
            module.backbone,
            "encode_states",
            lambda states, device, e=encode: asked.append(len(states)) or e(states, device),
        )
        trainer(tmp_path, PhaseSwitch(1, iterations=0)).fit(module, Digits(size=8, batch_size=4))
        counts.append(sum(asked))
    assert counts[0] == counts[1] > 0
    assert list((tmp_path / "tokens").rglob("*.safetensors"))


@pytest.mark.parametrize("quantization", ["nf4", None])
def test_bf16_precision_trains(gemma_path, tmp_path, quantization):
    module, watch = build(gemma_path, quantization=quantization), Watch()
    trainer(tmp_path, callbacks=[watch], precision="bf16-mixed").fit(module, Digits(size=8, batch_size=8))
    for epoch, moving in enumerate([{"fwm", "idm"}, {"fwm"}, {"idm"}]):
        for name in ("fwm", "idm"):
            before, after = of(watch.starts[epoch], name), of(watch.ends[epoch], name)
            assert equal(before, after) == (name not in moving), (epoch, name)
            assert all(tensor.isfinite().all() for tensor in after.values())
