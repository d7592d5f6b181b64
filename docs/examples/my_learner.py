"""A reward and a learner of one's own, given by class path: see docs/own_learner.md."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from swirl_lightning.engine.samples import Samples
from swirl_lightning.training.grpo import token_weights
from swirl_lightning.training.learners import Learner, Policy
from swirl_lightning.training.losses import Loss, score_update
from swirl_lightning.training.rewards import MeanLogProb, Scored
from swirl_lightning.training.rollouts import Update


class ShortStates(MeanLogProb):
    """The paper's reward, less ``weight`` nats for each token of a rollout."""

    def __init__(self, weight: float = 0.01) -> None:
        super().__init__()
        self.weight = weight

    def __call__(self, scored: Scored) -> Tensor:
        """Compute rewards of the N rollouts, (N,)."""
        log_prob, tokens = super().__call__(scored), scored.samples.completions.mask.sum(1)
        scored.metrics["log_prob"] = log_prob  # a curve of its own
        return log_prob - self.weight * tokens


class Reinforce(Learner):
    """REINFORCE, with a moving mean of each model's rewards as the baseline."""

    untrimmed = True  # drawn without top-p, so that log-probabilities are those of what was drawn from

    def __init__(self, momentum: float = 0.9) -> None:
        self.momentum, self.baselines = momentum, dict[str, float]()

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run goes on with."""
        return {"baselines": self.baselines}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with the baselines of a checkpoint."""
        self.baselines = dict(state["baselines"])

    def advantages(self, policy: Policy, samples: Sequence[Samples], rewards: Sequence[Tensor]) -> list[Tensor]:
        """Return each reward less the baseline, which then moves; the same one on every rank."""
        role, earned = policy.model.role.value, torch.cat(list(rewards))
        mean = float(policy.strategy.reduce(earned.mean(), reduce_op="mean"))
        baseline = self.baselines.get(role, mean)
        self.baselines[role] = self.momentum * baseline + (1 - self.momentum) * mean
        return [each - baseline for each in rewards]

    def update(self, policy: Policy, samples: Samples, advantages: Tensor) -> Update:
        """Train on all rollouts."""
        return Update.from_samples(samples, advantages)

    def loss(self, policy: Policy, update: Update) -> Loss:
        """Sum -A log π over tokens and rollouts; the denominator makes it the mean over those of all micro-batches."""
        rows = range(len(update.prompts))
        scored = score_update(policy.model, update, rows, policy.temperature, training=True)
        weights, denominator = token_weights(scored.mask, "sequence", policy.longest)
        total = -(update.advantages[:, None] * weights * scored.values).sum()
        metrics = {"baseline": self.baselines[policy.model.role.value]}
        return Loss(total, denominator, len(rows), "sequence", metrics, int(scored.mask.sum()))
