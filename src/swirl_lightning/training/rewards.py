"""Rewards of rollouts: log-probabilities under the frozen other model, or what a class makes of the rollouts."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from swirl_lightning.backbones.base import Backbone
from swirl_lightning.backbones.image_tokens import ImageTokens
from swirl_lightning.engine.ranges import check_ranges
from swirl_lightning.engine.samples import Samples
from swirl_lightning.engine.scoring import LogProbs
from swirl_lightning.metrics.embedding import MINILM, EmbeddingSimilarity, missing_encoder
from swirl_lightning.roles import Role
from swirl_lightning.transition import State, Transition


@dataclass(frozen=True)
class Scored:
    """Rollouts of B pairs, G each, with their scores; row n belongs to pair n // G; N = B * G.

    Attributes:
        role: the policy: the FWM in Phase I, the IDM in Phase II.
        transitions: the B pairs.
        samples: the N rollouts: next states in Phase I, actions in Phase II.
        log_probs: under the frozen other model, (N, L). Phase I scores the group's z after (x, ŷ_k):
            log Q(z | x, ŷ_k). Phase II scores the pair's y after (x, ẑ_k): log P(y | x, ẑ_k).
        backbone: the model family that encoded them.
        actions: latent actions: B in Phase I, z of each group, sampled or counterfactual; the N rollouts in Phase II.
        metrics: what a reward puts here, (N,) each, such as the parts that it sums; their means are logged as
            ``fwm/rewards/<name>`` and ``idm/rewards/<name>``. NaN stands for a rollout that has none. Names are the
            same for each batch of a phase, on every rank.
    """

    role: Role
    transitions: Sequence[Transition]
    samples: Samples
    log_probs: LogProbs
    backbone: Backbone
    actions: Samples
    metrics: dict[str, Tensor] = field(default_factory=dict)

    @property
    def group_size(self) -> int:
        """Number G of rollouts of a pair."""
        return self.samples.group_size

    def decode(self) -> list[State]:
        """Return the N rollouts as states, in Phase I, or as actions in words."""
        if self.role == Role.FWM:
            return self.backbone.decode_states(self.samples.contents, self.log_probs.values.device)
        return [self.backbone.decode_action(content) for content in self.samples.contents]

    def decode_actions(self) -> list[str]:
        """Return the latent actions in words: B in Phase I, N in Phase II."""
        return [self.backbone.decode_action(content) for content in self.actions.contents]


class Reward(ABC):
    """Reward of rollouts, chosen by class path.

    What it learns is kept in checkpoints if it has a ``state_dict`` and a ``load_state_dict``; every rank goes on from
    that of the first one.
    """

    @abstractmethod
    def __call__(self, scored: Scored) -> Tensor:
        """Compute rewards: the higher, the better.

        Returns:
            (N,) of a float type, on any device and in any unit; rollout n is of pair n // G.
        """

    def check(self, backbone: Backbone) -> None:  # noqa: B027 - most rewards need nothing
        """Raise ValueError if there is none for the rollouts of this backbone; called before the base is loaded."""


def rewarded(reward: Reward, scored: Scored) -> Tensor:
    """Call a reward; returns (N,) float32 on the device of the scores.

    Raises:
        ValueError: it, or one of its metrics, is something else than one number of a float type for each rollout.
    """
    given = {"model.reward": reward(scored)}
    given |= {f"model.reward: metric {name!r}": values for name, values in scored.metrics.items()}
    rollouts = len(scored.samples.contents)
    for name, found in given.items():
        shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        if shape != (rollouts,):
            raise ValueError(
                f"{name} gave {shape} for {rollouts} rollouts ({len(scored.transitions)} pairs, {scored.group_size} "
                f"each): return a tensor of shape ({rollouts},)"
            )
        if not found.is_floating_point():
            raise ValueError(f"{name} gave {found.dtype}: rewards are of a float type, so use .float()")
    return given["model.reward"].detach().to(scored.log_probs.values.device, torch.float32)


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

    def __call__(self, scored: Scored) -> Tensor:
        """Compute the mean of each row, (N,) float32, in nats per token."""
        return scored.log_probs.mean_per_token().clamp(min=self.floor)


class Constant(Reward):
    """Control with the reward 0 for every rollout.

    With GRPO supervised terms and the KL alone move the policy. BestOfN, whose threshold is below 0, trains on the
    likeliest rollout of each group.
    """

    def __call__(self, scored: Scored) -> Tensor:
        """Return zeros, (N,) float32."""
        return torch.zeros_like(scored.log_probs.mean_per_token())


class ShuffledWithinGroup(MeanLogProb):
    """Negative control: the same rewards, shuffled within each group.

    By it GRPO must improve nothing. To BestOfN it still says in which groups a rollout is accepted.

    The order of a group follows from its own rewards and the seed, by a hash: it is another one for every group, on
    every rank, and the same after a resume.
    """

    def __init__(self, floor: float = -10.0, seed: int = 0) -> None:
        super().__init__(floor)
        self.seed = seed

    def __call__(self, scored: Scored) -> Tensor:
        """Compute rewards (N,) float32, permuted within each group as if at random."""
        rewards = super().__call__(scored).view(-1, scored.group_size)
        order = torch.tensor([self._order(group) for group in rewards.tolist()], device=rewards.device)
        return rewards.gather(1, order).flatten()

    def _order(self, group: list[float]) -> list[int]:
        """Return the members' indices in the order of hashes."""
        key = f"{self.seed}|{group}"
        return sorted(range(len(group)), key=lambda n: hashlib.blake2b(f"{key}|{n}".encode(), digest_size=8).digest())


class ObservedSimilarity(MeanLogProb):
    """Likeness in meaning of the imagined and the observed next text, in Phase I; Phase II has the paper's reward.

    It is the cosine of their sentence embeddings, as the metric ``embedding_similarity`` has it, and supervision by y:
    compare what log Q adds to it. A counterfactual pair has no observed y: its group's rewards are 0.

    Args:
        model: encoder, as for :class:`swirl_lightning.metrics.embedding.EmbeddingSimilarity`.
        floor: of Phase II, as for :class:`MeanLogProb`.
    """

    def __init__(self, model: str = MINILM, floor: float = -10.0) -> None:
        super().__init__(floor)
        self.model, self._metric = model, EmbeddingSimilarity(model)

    def check(self, backbone: Backbone) -> None:
        """Raise ValueError if states are images, or the encoder cannot serve."""
        if isinstance(backbone, ImageTokens):
            raise ValueError(f"model.reward ObservedSimilarity compares texts: {type(backbone).__name__} draws images")
        if (reason := missing_encoder(self.model, "model.reward.model")) is not None:
            raise ValueError(f"model.reward ObservedSimilarity has no encoder {self.model!r}: {reason}")

    def __call__(self, scored: Scored) -> Tensor:
        """Compute cosines in [-1, 1], (N,) float32, in Phase I; nats per token in Phase II."""
        if scored.role == Role.IDM:
            return super().__call__(scored)
        observed = [str(row.observed) for row in scored.transitions for _ in range(scored.group_size)]
        metric = self._metric.to(scored.log_probs.values.device)
        cosines = metric.score([str(state) for state in scored.decode()], observed)
        known = [row.counterfactual is None for row in scored.transitions for _ in range(scored.group_size)]
        earned = torch.tensor(cosines, dtype=torch.float32, device=metric.device)
        return earned * torch.tensor(known, device=metric.device)
