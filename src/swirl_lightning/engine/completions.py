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
    """

    ids: Tensor
    mask: Tensor

    def part(self, rows: slice) -> Completions:
        """Return some completions, without columns in which none of them has a token."""
        ids, mask = (field[rows] for field in self)
        used = int(mask.any(0).sum())
        return Completions(ids[:, :used], mask[:, :used])

    def rows(self) -> list[TokenIds]:
        """Return the ids of each completion, without padding."""
        lengths = self.mask.sum(1).tolist()
        return [row[:n] for row, n in zip(self.ids.tolist(), lengths, strict=True)]
