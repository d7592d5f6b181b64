"""Rewards of rollouts by hand, and that a run gives them what they read."""

from __future__ import annotations

import pytest
import torch

from support.swirl import build, randomize, trainer
from support.text_suites import bert_folder
from support.tiny_families import backbone_of, liquid_folder
from support.world import Digits
from swirl_lightning import SWIRL, GRPOConfig
from swirl_lightning.callbacks import PhaseSwitch
from swirl_lightning.engine.completions import Completions
from swirl_lightning.engine.samples import Samples
from swirl_lightning.engine.scoring import LogProbs
from swirl_lightning.metrics.embedding import EmbeddingSimilarity
from swirl_lightning.roles import Role
from swirl_lightning.training.rewards import MeanLogProb, ObservedSimilarity, Scored, ShuffledWithinGroup, rewarded


def scored(rows, group_size):
    """Rollouts that have log-probabilities alone."""
    values = torch.tensor(rows)
    completions = Completions(torch.zeros_like(values).long(), values != 0)
    samples = Samples([[]] * (len(rows) // group_size), completions, [[] for _ in rows])
    log_probs = LogProbs(values, torch.zeros_like(values), values != 0)
    return Scored(Role.FWM, [None] * len(samples.prompts), samples, log_probs, None, samples)


def test_reward_is_the_mean_log_prob_with_a_floor():
    rollouts = scored([[-1.0, -2.0, -3.0], [-4.0, 0.0, 0.0], [-30.0, -20.0, 0.0]], 3)
    assert MeanLogProb()(rollouts).tolist() == [-2.0, -4.0, -10.0]
    assert MeanLogProb(floor=-50.0)(rollouts).tolist() == [-2.0, -4.0, -25.0]


@pytest.mark.parametrize(
    ("gives", "told"),
    [
        (lambda values: values[::2], r"gave \(2,\) for 4 rollouts \(2 pairs, 2 each\): return .* shape \(4,\)"),
        (lambda values: values[:, None], r"gave \(4, 1\) for 4"),
        (lambda values: values.view(2, 2), r"gave \(2, 2\) for 4"),
        (lambda values: values.tolist(), "gave list for 4"),
        (lambda values: values > 0, r"gave torch.bool: rewards are of a float type"),
        (lambda values: values.long(), r"gave torch.int64: rewards are of a float type"),
    ],
    ids=["a number a pair", "a column", "a grid", "a list", "booleans", "integers"],
)
def test_a_reward_that_gives_something_else_than_a_number_a_rollout_is_refused(gives, told):
    """Four numbers of sixteen rollouts trained on the first four, without a word."""
    rollouts = scored([[-1.0], [-2.0], [-3.0], [-4.0]], 2)
    with pytest.raises(ValueError, match=rf"^model\.reward {told}"):
        rewarded(lambda given: gives(given.log_probs.mean_per_token()), rollouts)


class InParts(MeanLogProb):
    """The log-probability less a length."""

    def __init__(self, lengths):
        super().__init__()
        self.lengths = torch.tensor(lengths)

    def __call__(self, scored):
        scored.metrics["log_prob"] = log_prob = super().__call__(scored)
        scored.metrics["length"] = self.lengths
        return log_prob - self.lengths


@pytest.mark.parametrize(("lengths", "told"), [([1.0], r"gave \(1,\) for 2"), ([1, 2], "gave torch.int64")])
def test_a_metric_that_is_no_number_a_rollout_is_refused(lengths, told):
    with pytest.raises(ValueError, match=rf"^model\.reward: metric 'length' {told}"):
        rewarded(InParts(lengths), scored([[-1.0], [-2.0]], 2))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_rewards_are_float32_whatever_a_reward_computes_in(dtype):
    rollouts = scored([[-1.0], [-2.0]], 2)
    found = rewarded(lambda given: given.log_probs.mean_per_token().to(dtype), rollouts)
    assert found.dtype == torch.float32
    assert found.tolist() == [-1.0, -2.0]


def test_shuffled_rewards_stay_within_their_group():
    rollouts = scored([[-float(i + 1)] for i in range(16)], 8)
    shuffled = ShuffledWithinGroup(floor=-100.0)(rollouts)
    assert sorted(shuffled[:8].tolist()) == sorted(-float(i + 1) for i in range(8))
    assert shuffled.tolist() != rollouts.log_probs.values[:, 0].tolist()


def test_the_order_of_a_group_depends_on_nothing_before_it():
    """As on another rank, or after a resume; and groups have orders of their own."""
    groups = [scored([[-float(shift + i)] for i in range(1, 9)], 8) for shift in range(20)]
    fresh = [ShuffledWithinGroup(floor=-100.0)(group).tolist() for group in groups]
    reward = ShuffledWithinGroup(floor=-100.0)
    assert [reward(group).tolist() for group in reversed(groups)] == fresh[::-1]
    orders = [[value + shift for value in row] for shift, row in enumerate(fresh)]
    assert len({tuple(order) for order in orders}) == 20
    places = [order.index(-1.0) for order in orders]
    assert len(set(places)) >= 5  # of 8
    assert ShuffledWithinGroup(floor=-100.0, seed=1)(groups[0]).tolist() != fresh[0]


class Kept(ObservedSimilarity):
    """Keeps what it is given, and what it gives."""

    def __init__(self, model: str) -> None:
        super().__init__(model)
        self.calls = []

    def __call__(self, scored):
        rewards = super().__call__(scored)
        self.calls.append((scored, scored.decode(), rewards))
        return rewards


def test_the_likeness_of_imagined_and_observed_texts_is_the_metrics(gemma_path, tmp_path):
    """In a run of both phases; pairs with a counterfactual action have no observed y, and Phase II no imagined one."""
    encoder = str(bert_folder(tmp_path / "bert"))
    module = build(gemma_path, reward=Kept(encoder), grpo=GRPOConfig(group_size=3, beta=0))
    randomize(module)
    data = Digits(size=8, batch_size=4, counterfactual_share=0.5)
    trainer(tmp_path, PhaseSwitch(0, ["fwm", "idm"], iterations=1)).fit(module, data)
    metric, asked = EmbeddingSimilarity(encoder), 0
    for given, drawn, rewards in module.reward.calls:
        assert len(drawn) == len(rewards) == 3 * len(given.transitions)
        actions = given.decode_actions()
        if given.role == Role.IDM:
            assert actions == drawn
            assert torch.equal(rewards, MeanLogProb()(given))
            continue
        wanted = metric.score(drawn, [row.observed for row in given.transitions for _ in range(3)])
        counterfactual = [row.counterfactual is not None for row in given.transitions for _ in range(3)]
        asked += sum(counterfactual)
        assert [z for z, row in zip(actions, given.transitions, strict=True) if row.counterfactual] == [
            row.counterfactual for row in given.transitions if row.counterfactual
        ]
        by_hand = [0.0 if none else cosine for none, cosine in zip(counterfactual, wanted, strict=True)]
        assert rewards.tolist() == pytest.approx(by_hand, abs=1e-5)
    assert {given.role for given, *_ in module.reward.calls} == {Role.FWM, Role.IDM}
    assert 0 < asked < 3 * 8


def test_rewards_that_cannot_be_computed_are_refused(gemma_path, tmp_path):
    data, phases = Digits(size=8, batch_size=4), PhaseSwitch(0, ["fwm"], iterations=1)
    with pytest.raises(ValueError, match=r"no encoder '.*nowhere'.*cannot be loaded"):
        trainer(tmp_path, phases).fit(build(gemma_path, reward=ObservedSimilarity(str(tmp_path / "nowhere"))), data)
    images = SWIRL(backbone_of("liquid", liquid_folder(tmp_path / "liquid")), reward=ObservedSimilarity())
    with pytest.raises(ValueError, match="compares texts: Liquid draws images"):
        trainer(tmp_path, phases).fit(images, data)
