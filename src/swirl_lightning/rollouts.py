"""One typed record for what a policy sampled, and one for a batch of rollouts with its rewards."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from swirl_lightning.prompts import TokenIds
from swirl_lightning.transition import Transition


class Completions(NamedTuple):
    """Token ids generated after prompts, padded on the right.

    Attributes:
        ids: (N, L) long; 0 where masked out.
        mask: (N, L) bool; True on generated tokens, the EOS included.
    """

    ids: Tensor
    mask: Tensor

    def rows(self) -> list[TokenIds]:
        """Each row's tokens, without padding."""
        lengths = self.mask.sum(1).tolist()
        return [row[:n] for row, n in zip(self.ids.tolist(), lengths, strict=True)]


@dataclass(frozen=True)
class Rollouts:
    """A batch of B transitions with G rollouts each; row n belongs to transition n // G; N = B * G.

    Attributes:
        phase: ``fwm`` (Phase I: completions are next states) or ``idm`` (Phase II: they are actions).
        transitions: the B pairs that were shown.
        actions: the actions in words: B sampled z in Phase I (one a group), N sampled ẑ in Phase II.
        contents: N content ids of what the policy sampled (no marks, no EOS).
        completions: the same as the policy emitted them, (N, L).
        rewards: (N,) float32, mean log-probability per token under the frozen other model, in nats.
        advantages: (N,) float32.
        group_size: G.
    """

    phase: str
    transitions: list[Transition]
    actions: list[str]
    contents: list[TokenIds]
    completions: Completions
    rewards: Tensor
    advantages: Tensor
    group_size: int
