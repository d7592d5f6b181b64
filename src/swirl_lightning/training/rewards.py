"""Rewards of rollouts: log-probabilities under the frozen other model."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from swirl_lightning.engine.ranges import check_ranges
from swirl_lightning.engine.scoring import LogProbs


class Reward(ABC):
    """Reward, chosen by class path, from the frozen model's log-probabilities."""

    @abstractmethod
    def __call__(self, log_probs: LogProbs, group_size: int) -> Tensor:
        """Compute rewards (N,) float32 from the log-probabilities of N scored completions.

        Phase I scores the group's z after (x, ŷ_k): log Q(z | x, ŷ_k). Phase II scores the pair's y
        after (x, ẑ_k): log P(y | x, ẑ_k).
        """


class MeanLogProb(Reward):
    """Mean log-probability per token, the reward of the paper in both phases (section 3).

    Args:
        floor: rewards are clamped from below to this, in nats per token (-10 in the authors' code).

    Raises:
        ValueError: ``floor`` is not below 0, where every log-probability would be clamped.
    """

    def __init__(self, floor: float = -10.0) -> None:
        check_ranges("model.reward", {"floor": floor}, floor="(-inf, 0)")
        self.floor = floor

    def __call__(self, log_probs: LogProbs, group_size: int) -> Tensor:
        """Compute the mean of each row, (N,) float32, in nats per token."""
        return log_probs.mean_per_token().clamp(min=self.floor)


class Constant(Reward):
    """Control with the reward 0 for every rollout: only supervised terms and the KL move the policy."""

    def __call__(self, log_probs: LogProbs, group_size: int) -> Tensor:
        """Return zeros, (N,) float32."""
        return torch.zeros_like(log_probs.mean_per_token())


class ShuffledWithinGroup(MeanLogProb):
    """Negative control: the same rewards, shuffled within each group. Training with it must improve nothing.

    The order of a group follows from its own rewards and the seed, by a hash: it is another one for every group, on
    every rank, and the same after a resume.
    """

    def __init__(self, floor: float = -10.0, seed: int = 0) -> None:
        super().__init__(floor)
        self.seed = seed

    def __call__(self, log_probs: LogProbs, group_size: int) -> Tensor:
        """Compute rewards (N,) float32, permuted within each group as if at random."""
        rewards = super().__call__(log_probs, group_size).view(-1, group_size)
        order = torch.tensor([self._order(group) for group in rewards.tolist()], device=rewards.device)
        return rewards.gather(1, order).flatten()

    def _order(self, group: list[float]) -> list[int]:
        """Return the members' indices in the order of hashes."""
        key = f"{self.seed}|{group}"
        return sorted(range(len(group)), key=lambda n: hashlib.blake2b(f"{key}|{n}".encode(), digest_size=8).digest())
