"""What is sampled is what is scored: the exact expected gradient of a small policy, over all that it may sample."""

from __future__ import annotations

import itertools

import pytest
import torch

from support.swirl import build, trainer
from support.world import Digits
from swirl_lightning import SamplingConfig
from swirl_lightning.callbacks import PhaseSwitch
from swirl_lightning.engine.drawing import draw
from swirl_lightning.training.grpo import clipped_surrogate, group_advantages, kl_k3
from swirl_lightning.training.learners import GRPO, BestOfN
from swirl_lightning.world_models import WorldModel

SEQUENCES = list(itertools.product(range(3), repeat=2))
"""All pairs of two tokens out of three."""
REWARDS = torch.randn(9, generator=torch.Generator().manual_seed(0)).double()
TRIMMED = SamplingConfig(temperature=1.0, top_p=0.9)


def tables(shift=0.0):
    """Logits of the first token and of the second after each first one: (4, 3)."""
    likely = torch.tensor([[0.5, 0.42, 0.08], [0.6, 0.33, 0.07], [0.3, 0.66, 0.04], [0.05, 0.25, 0.7]])
    return likely.double().log() + shift * torch.eye(4, 3).double()


def log_probs(logits):
    """Log-probability of each token of all sequences, (9, 2)."""
    table = logits.log_softmax(-1)
    return torch.stack([torch.stack([table[0, a], table[1 + a, b]]) for a, b in SEQUENCES])


def drawn(logits, config):
    """Probability of each sequence, (9,), as the engine draws: an even grid integrates its inverse distribution."""
    grid = (torch.arange(100_000) + 0.5) / 100_000
    shares = [torch.bincount(draw(row.float().expand(len(grid), -1), grid, config), minlength=3) for row in logits]
    table = torch.stack(shares) / len(grid)
    return torch.stack([table[0, a] * table[1 + a, b] for a, b in SEQUENCES]).double()


def expected_gradient(config, beta=0.0):
    """Of the loss of a group of two, over all groups."""
    logits = tables().requires_grad_()
    policy, probability = log_probs(logits), drawn(logits.detach(), config)
    total = 0.0
    for group in itertools.product(range(9), repeat=2):
        rows = list(group)
        advantages = group_advantages(REWARDS[rows], 2, "none")
        loss, _ = clipped_surrogate(policy[rows], policy[rows].detach(), advantages, 0.2)
        loss = loss + beta * kl_k3(policy[rows], log_probs(tables(0.5))[rows])
        total = total + probability[rows].prod() * loss.sum() / 2
    return torch.autograd.grad(total, logits)[0]


def true_gradient():
    """Of minus the expected reward; a group's own mean as baseline takes 1 / G of it."""
    logits = tables().requires_grad_()
    return torch.autograd.grad(-(log_probs(logits).sum(1).exp() * REWARDS).sum() / 2, logits)[0]


def apart(one, other):
    return float((one - other).norm() / other.norm())


def test_without_truncation_the_expected_gradient_is_that_of_the_expected_reward():
    assert apart(expected_gradient(TRIMMED.untrimmed), true_gradient()) < 1e-3


def test_with_truncation_it_is_not():
    """Tokens that are never sampled get a gradient, which the reward within the nucleus does not give them, either."""
    trimmed = expected_gradient(TRIMMED)
    assert apart(trimmed, true_gradient()) > 0.2
    never = tables().softmax(-1) < 0.1
    assert trimmed[never].abs().max() > 0.01
    logits = tables().requires_grad_()
    nucleus = log_probs(logits.masked_fill(never, -torch.inf)).sum(1).exp()
    assert not torch.autograd.grad(-(nucleus * REWARDS).sum(), logits)[0][never].any()


def test_the_kl_is_one_only_without_truncation():
    policy, reference = log_probs(tables()), log_probs(tables(0.5))
    exact = float((policy.sum(1).exp()[:, None] * (policy - reference)).sum())
    estimate = kl_k3(policy, reference).sum(1)
    assert float(drawn(tables(), TRIMMED.untrimmed) @ estimate) == pytest.approx(exact, rel=1e-3)
    assert abs(float(drawn(tables(), TRIMMED) @ estimate) / exact - 1) > 0.01


PAPER = SamplingConfig(0.75, 0.96, 4096)
OTHER = SamplingConfig(0.5, 0.9)


@pytest.mark.parametrize(
    ("learner", "given", "fwm", "idm"),
    [
        (GRPO(), {}, SamplingConfig(0.75, 1.0), SamplingConfig(0.75, 1.0)),
        (BestOfN(-20.0), {}, PAPER, PAPER),  # its loss holds no ratio
        (GRPO(), {"fwm_sampling": PAPER, "idm_sampling": OTHER}, PAPER, OTHER),
    ],
    ids=["GRPO", "BestOfN", "as in the authors' code"],
)
def test_what_the_phases_draw_with(gemma_path, tmp_path, monkeypatch, learner, given, fwm, idm):
    """Rollouts as the learner needs them, or as they are set; the actions that condition Phase I as predictions."""
    module = build(gemma_path, learner=learner, sampling=PAPER, quantization=None, **given)
    module.configure_model()
    sample_ids, seen = WorldModel.sample_ids, []

    def watch(self, prompts, noise, config, drafts):
        seen.append((module.phase.name.value, self.role.value, len(noise) // len(prompts), config))
        return sample_ids(self, prompts, noise, config, drafts)

    monkeypatch.setattr(WorldModel, "sample_ids", watch)
    trainer(tmp_path, PhaseSwitch(0, iterations=1)).fit(module, Digits(size=4, batch_size=4))
    assert seen == [("fwm", "idm", 1, PAPER), ("fwm", "fwm", 4, fwm), ("idm", "idm", 4, idm)]
