"""Completions that a policy sampled."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from swirl_lightning.engine.grammar import TokenIds


class Completions(NamedTuple):
    """Token ids of N completions, padded on the right.

    Attributes:
        ids: (N, L) long; 0 where masked out.
        mask: (N, L) bool; True on generated tokens, the EOS included.
        log_probs: (N, L) float32, nats, 0 where masked out: of each token under the engine that sampled it, over the
            allowed ids at the sampling temperature, before top-p and top-k. None if that engine is the one that scores.
    """

    ids: Tensor
    mask: Tensor
    log_probs: Tensor | None = None

    def part(self, rows: slice) -> Completions:
        """Return some completions, without columns in which none of them has a token."""
        used = int(self.mask[rows].any(0).sum())
        return Completions(*(None if field is None else field[rows, :used] for field in self))  # type: ignore[arg-type]

    def rows(self) -> list[TokenIds]:
        """Return the ids of each completion, without padding."""
        lengths = self.mask.sum(1).tolist()
        return [row[:n] for row, n in zip(self.ids.tolist(), lengths, strict=True)]
