"""Best-of-N distillation and labelled triples beside the pairs, against what they say they compute."""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback

from support.swirl import CONSTANT, SGD, build, randomize, snapshot, trainer
from support.world import Digits
from swirl_lightning import GRPOConfig
from swirl_lightning.callbacks import PhaseSwitch
from swirl_lightning.checkpoints.learned import restore_states, states_of
from swirl_lightning.data import TransitionBatch
from swirl_lightning.roles import Role
from swirl_lightning.training.learners import GRPO, BestOfN, Policy
from swirl_lightning.training.losses import SharedDenominator, score_update
from swirl_lightning.training.rewards import Constant
from swirl_lightning.training.rollouts import Update, latent_actions
from swirl_lightning.transition import Transition
from swirl_lightning.world_models import WorldModel

G = 6


@pytest.fixture(scope="module")
def module(gemma_path):
    module = build(gemma_path, grpo=GRPOConfig(group_size=G), quantization=None)
    randomize(module)
    return module


def rollouts(module):
    """Next states of three pairs, and rewards of which none, some and all are above -0.5."""
    rows = [Transition(str(n), str(n + 1), "up", id=str(n)) for n in range(3)]
    x = module.states.encode([row.before for row in rows], module.device)
    z = [module.backbone.encode_action(row.action) for row in rows]
    samples = module.models.fwm.sample(x, z, [row.id for row in rows], module.sampling, group=G)
    rewards = torch.linspace(-2, -0.6, 3 * G)
    rewards[[G, G + 2, G + 5]] = -0.1
    rewards[2 * G :] = -0.2
    return samples, rewards


def log_prob(module, samples, row):
    """Mean log-probability of one rollout, scored on its own; with gradient."""
    prompt, completion = samples.prompts[row // G], samples.completions.rows()[row]
    return module.models.fwm.score_ids([prompt], [completion], training=True).mean_per_token()


@pytest.mark.parametrize("temperature", [1.0, 1.7])
def test_the_likeliest_of_the_accepted_rollouts_is_trained_on(module, temperature):
    samples, rewards = rollouts(module)
    learner, policy = BestOfN(-0.5), Policy(module.models.fwm, module.grpo, temperature, strategy=None)
    (advantages,) = learner.advantages(policy, [samples], [rewards])
    means = [log_prob(module, samples, row).item() for row in range(3 * G)]
    second = max((G, G + 2, G + 5), key=lambda row: means[row])
    third = max(range(2 * G, 3 * G), key=lambda row: means[row])
    assert advantages.nonzero()[:, 0].tolist() == [second, third]

    update = learner.update(policy, samples, advantages)
    loss = learner.loss(policy, update)
    parameters = list(module.adapters.parameters("fwm"))
    got = torch.autograd.grad(loss.total / loss.denominator, parameters)
    by_hand = -(log_prob(module, samples, second) + log_prob(module, samples, third)) / 3  # the first group counts 0
    for one, other in zip(got, torch.autograd.grad(by_hand.sum(), parameters), strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)
    assert float(loss.metrics["chosen_share"]) == pytest.approx(2 / 3)


def test_nothing_accepted_moves_nothing(module):
    samples, rewards = rollouts(module)
    learner, policy = BestOfN(0.0), Policy(module.models.fwm, module.grpo, 1.0, strategy=None)
    (advantages,) = learner.advantages(policy, [samples], [rewards])
    loss = learner.loss(policy, learner.update(policy, samples, advantages))
    assert float(loss.total) == 0
    assert all(not grad.any() for grad in torch.autograd.grad(loss.total, list(module.adapters.parameters("fwm"))))


def test_a_batch_without_a_signal_counts_in_no_mean(module):
    """Its first group stands in for all, so that there is a graph; the means were those of another batch size."""
    samples, rewards = rollouts(module)
    policy, learner = Policy(module.models.fwm, GRPOConfig(group_size=G, beta=0), 1.0, strategy=None), GRPO()
    for equal in (True, False):
        (advantages,) = learner.advantages(policy, [samples], [torch.full_like(rewards, -3.3) if equal else rewards])
        loss = learner.loss(policy, learner.update(policy, samples, advantages))
        assert (loss.weight == 0) == equal
        (grad, *_) = torch.autograd.grad(loss.total, list(module.adapters.parameters("fwm")), allow_unused=True)
        assert (grad is None or not grad.any()) == equal


def test_a_threshold_is_a_number():
    with pytest.raises(ValueError, match=r"model.learner.threshold must lie in \(-inf, inf\), got nan"):
        BestOfN(float("nan"))


@pytest.mark.parametrize(
    ("phase", "learner"), [("fwm", GRPO()), ("fwm", BestOfN(-20)), ("idm", GRPO()), ("bootstrap", None)]
)
def test_labelled_triples_accumulate_as_one_large_batch(gemma_path, tmp_path, phase, learner):
    ends = []
    for batch_size, k in ((8, 1), (2, 4)):
        settings = {"optimizer": SGD, "optim": CONSTANT, "labelled_weight": 0.7, "quantization": None}
        module = build(gemma_path, learner=learner, **settings)
        randomize(module)
        data = Digits(size=16, batch_size=batch_size, labelled_per_batch=batch_size // 2)
        run = trainer(tmp_path, PhaseSwitch(0, [phase], iterations=1), accumulate_grad_batches=k)
        run.fit(module, data)
        ends.append(snapshot(module))
    for key in ends[0]:
        torch.testing.assert_close(ends[0][key], ends[1][key], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("phase", ["fwm", "idm"])
def test_without_a_reward_the_labelled_triples_alone_move_the_policy(gemma_path, tmp_path, phase):
    """Against one step of supervised training on the same triples, by hand."""
    module = build(
        gemma_path,
        reward=Constant(),
        grpo=GRPOConfig(group_size=4, beta=0, loss_normalization="sequence"),
        quantization=None,
        labelled_weight=0.5,
    )
    randomize(module)
    data = Digits(size=8, batch_size=4, labelled_per_batch=2)
    run = trainer(tmp_path, PhaseSwitch(0, [phase], iterations=1), max_steps=1)
    seen = []
    step = module.training_step
    module.training_step = lambda batch, batch_idx: seen.append(batch) or step(batch, batch_idx)
    start = snapshot(module)
    module.on_before_optimizer_step, divide = lambda optimizer: None, module.on_before_optimizer_step
    grads = {}

    def look(optimizer):
        divide(optimizer)
        grads.update({n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None})

    module.on_before_optimizer_step = look
    run.fit(module, data)
    assert len(seen[0].labelled) == 2
    assert all(row.action for row in seen[0].labelled)
    module.load_state_dict(start)
    module.zero_grad()
    rows = seen[0].labelled
    x, y = (module.states.encode([getattr(row, end) for row in rows], module.device) for end in ("before", "after"))
    z = [module.backbone.encode_action(row.action) for row in rows]
    model = module.models.of(phase)
    scored = model.log_prob(y, x, z, training=True) if phase == "fwm" else model.log_prob(z, x, y, training=True)
    (-0.5 * scored.mean_per_token().mean()).backward()
    by_hand = {n: p.grad for n, p in module.named_parameters() if p.grad is not None}
    moved = {name for name, grad in grads.items() if grad.any()}
    assert moved == {name for name, grad in by_hand.items() if grad.any()}
    for name in moved:
        torch.testing.assert_close(grads[name], by_hand[name], atol=1e-6, rtol=1e-4)


def test_a_batch_without_labels_has_none():
    assert TransitionBatch([]).labelled == []


def test_the_idm_names_the_actions_of_the_other_pairs_alone(gemma_path, monkeypatch):
    module = build(gemma_path)
    randomize(module)
    rows = Digits(size=6).load_split("state_only")
    x, y = module.encode_pairs(rows)
    keys = [f"key {row.id}" for row in rows]
    drawn = module.models.idm.sample(x, y, keys, module.sampling)
    asked, sample = [], WorldModel.sample
    monkeypatch.setattr(WorldModel, "sample", lambda self, x, *rest: asked.append(len(x)) or sample(self, x, *rest))
    for chosen in ({1, 4}, set(), set(range(6))):
        pairs = [replace(row, counterfactual="add" if n in chosen else None) for n, row in enumerate(rows)]
        z = latent_actions(module.models.idm, pairs, x, y, keys, module.sampling, module.backbone)
        given = module.backbone.encode_action("add")
        assert z.contents == [given if n in chosen else own for n, own in enumerate(drawn.contents)]
        complete = module.models.idm.grammar.complete(given)
        emitted = [complete if n in chosen else own for n, own in enumerate(drawn.completions.rows())]
        assert z.completions.rows() == emitted
        assert (z.prompts, z.group_size) == (drawn.prompts, 1)
    assert asked == [4, 6]


def test_the_anchor_leaves_out_pairs_with_a_counterfactual_action(gemma_path, tmp_path):
    ends = []
    for share in (0.0, 1.0):
        module = build(gemma_path, reward=Constant(), anchor_weight=1.0, grpo=GRPOConfig(group_size=2, beta=0))
        randomize(module)
        start = snapshot(module)
        data = Digits(size=16, batch_size=4, counterfactual_share=share)
        trainer(tmp_path, PhaseSwitch(0, ["fwm"], iterations=1)).fit(module, data)
        ends.append(
            any(not torch.equal(start[key], end) for key, end in snapshot(module).items() if key.startswith("fwm."))
        )
    assert ends == [True, False], "no action led to their y"


def test_micro_batches_of_pairs_with_and_without_a_counterfactual_action_add_up(gemma_path, tmp_path):
    ends = []
    for size in (8, 4, 2, 1):
        settings = {"optimizer": SGD, "optim": CONSTANT, "quantization": None, "anchor_weight": 1.0}
        module = build(gemma_path, **settings)
        randomize(module)
        start = snapshot(module)
        options = {"accumulate_grad_batches": 8 // size, "limit_train_batches": 8 // size}
        data = Digits(size=16, batch_size=size, counterfactual_share=0.5)
        trainer(tmp_path, PhaseSwitch(0, ["fwm"], iterations=1), **options).fit(module, data)
        ends.append(snapshot(module))
    moved = [key for key in start if key.startswith("fwm.") and not torch.equal(start[key], ends[0][key])]
    assert moved
    for end in ends[1:]:
        for key in moved:
            torch.testing.assert_close(end[key], ends[0][key], atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("labelled", [0, 2])
def test_the_anchor_with_the_reward_off_is_bootstrap(gemma_path, tmp_path, labelled):
    """Both are supervision by the observed y under an action that the IDM names: the same steps, so one control."""
    ends = []
    for phase in ("bootstrap", "fwm"):
        settings = {"optimizer": SGD, "optim": CONSTANT, "quantization": None, "anchor_weight": 1.0}
        settings["grpo"] = GRPOConfig(group_size=2, beta=0, loss_normalization="sequence")
        module = build(gemma_path, reward=Constant(), **settings)
        randomize(module)
        start = snapshot(module)
        data = Digits(size=16, batch_size=4, labelled_per_batch=labelled)
        trainer(tmp_path, PhaseSwitch(0, [phase], iterations=1)).fit(module, data)
        ends.append(snapshot(module))
    moved = {key for key in start if not torch.equal(start[key], ends[0][key])}
    assert {key.split(".")[0] for key in moved} == {"fwm", "fwm_ref", "idm_ref"}  # the last two are copies
    for key in start:
        torch.testing.assert_close(ends[0][key], ends[1][key], atol=1e-5, rtol=1e-5)


class OfSomePairs(BestOfN):
    """Trains on the chosen rollouts of pairs with these ids; its denominator counts their tokens alone."""

    def __init__(self, *ids):
        super().__init__(threshold=-1e9)
        self.ids, self.seen = set(ids), []

    def loss(self, policy, update):
        loss = super().loss(policy, update)
        taken = float(len(self.seen) in self.ids)
        self.seen.append(taken)
        return replace(loss, total=taken * loss.total, denominator=taken * loss.denominator)


@pytest.mark.parametrize(("anchor", "labelled"), [(0, 0), (1, 0), (0, 2)])
def test_a_learner_may_train_on_nothing(gemma_path, tmp_path, anchor, labelled):
    """Of the four micro-batches of two steps on the second alone: the first step has one, the other one none."""
    logged = []

    class Logged(Callback):
        def on_train_batch_end(self, run, module, *_):
            if run.global_step > len(logged):
                logged.append((float(run.callback_metrics["fwm/loss"]), snapshot(module)))

    learner = OfSomePairs(1)
    module = build(gemma_path, learner=learner, optimizer=SGD, optim=CONSTANT, anchor_weight=float(anchor))
    randomize(module)
    fit = trainer(tmp_path, PhaseSwitch(0, ["fwm"], iterations=1), [Logged()], accumulate_grad_batches=2)
    fit.fit(module, Digits(size=16, batch_size=4, labelled_per_batch=labelled))
    assert learner.seen == [0, 1, 0, 0]
    (first, after), (second, end) = logged
    assert first > 0
    assert second == first  # a mean over no token is not logged
    assert all(torch.equal(after[key], end[key]) for key in end)


def test_a_denominator_that_a_learner_keeps_is_left_as_it_is():
    """Ranks sum in place."""
    kept, denominator = torch.tensor(3.0), SharedDenominator()
    reduce = SimpleNamespace(reduce=lambda value, reduce_op: value.mul_(2))
    run = SimpleNamespace(strategy=reduce, accumulate_grad_batches=1, world_size=2)
    weight = torch.nn.Parameter(torch.ones(1))
    weight.grad = torch.tensor([6.0])
    denominator.add(kept)
    denominator.divide(torch.optim.SGD([weight], 1.0), run)
    assert weight.grad.item() == 6 * 2 / 6
    assert kept.item() == 3


def test_any_rows_of_an_update_may_be_scored(module):
    samples, rewards = rollouts(module)
    update, model = Update.from_samples(samples, rewards), module.models.fwm
    whole = score_update(model, update, range(3 * G), 1.0).mean_per_token()
    for rows in ([0, G - 1, G, 2 * G + 1, 3], [*range(G, 3 * G)], [*range(2 * G, 3 * G), *range(G)], [5]):
        torch.testing.assert_close(score_update(model, update, rows, 1.0).mean_per_token(), whole[rows])


def test_what_a_loss_needs_besides_is_kept_in_checkpoints():
    extra = {"rewards": torch.tensor([1.0, 2.0]), "words": ["a", "b"], "by_rank": {"n": [torch.tensor(3)]}}
    update = Update([[1], [1]], [[2], [3]], torch.tensor([0.5, -0.5]), 2, 1, temperature=0.7, extra=extra)
    back = Update.of(update.state(), torch.device("cpu"))
    assert back.extra["words"] == ["a", "b"]
    assert torch.equal(back.extra["rewards"], extra["rewards"])
    assert (back.extra["by_rank"], back.temperature, back.completions) == (extra["by_rank"], 0.7, [[2], [3]])
    assert Update.of(update.state(), torch.device("meta")).extra["by_rank"]["n"][0].is_meta


class Stateful(GRPO):
    """Keeps what it is given."""

    def __init__(self, state):
        self.kept = state

    def state_dict(self):
        return {"kept": self.kept}

    def load_state_dict(self, state):
        self.kept = state["kept"]


def test_a_state_of_another_class_is_left_and_told(recwarn):
    """As where a run goes on with another learner."""
    states = states_of(SimpleNamespace(learner=Stateful([1.0, {"fwm": torch.ones(2)}]), reward=Constant()))
    assert list(states) == ["learner"]
    again = SimpleNamespace(learner=Stateful(None), reward=Constant())
    restore_states(states, again)
    assert again.learner.kept[1]["fwm"].tolist() == [1.0, 1.0]
    restore_states(states, SimpleNamespace(learner=GRPO(), reward=Constant()))
    told = [str(warning.message) for warning in recwarn]
    assert told == ["model.learner begins anew: the checkpoint's state is of test_learners.Stateful"]
    assert states_of(SimpleNamespace(learner=GRPO(), reward=Constant())) == {}
    for damaged in ({"learner": 5}, {"learner": {"class": "test_learners.Stateful"}}, 7):
        with pytest.raises(ValueError, match=r"the state of model\.learner in the checkpoint cannot be restored"):
            restore_states(damaged, again)


@pytest.mark.parametrize("value", [np.float64(1), deque([1]), {Role.FWM: 1.0}, [Path("x")]])
def test_a_state_that_could_not_be_read_again_is_refused(value, gemma_path, tmp_path):
    """Before the training: each of its checkpoints would be lost."""
    module = build(gemma_path, learner=Stateful(value))
    with pytest.raises(ValueError, match=r"the state_dict of model\.learner holds a \w+.*read without code"):
        trainer(tmp_path).fit(module, Digits(size=8, batch_size=8))
    update = Update([[1]], [[2]], torch.ones(1), 1, 1, extra={"value": value})
    with pytest.raises(ValueError, match=r"Update\.extra holds a "):
        update.state()

    class Extra(GRPO):
        def update(self, *args):
            return replace(super().update(*args), extra={"value": value})

    module, switch = build(gemma_path, learner=Extra()), PhaseSwitch(0, ["fwm"], iterations=1)
    with pytest.raises(ValueError, match=r"Update\.extra holds a "):  # at the first step, not when it is saved
        trainer(tmp_path, switch).fit(module, Digits(size=8, batch_size=8))
    assert module.trainer.global_step == 0
