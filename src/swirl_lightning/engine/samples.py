"""Samples of a model for a batch of prompts."""

from __future__ import annotations

from dataclasses import dataclass

from swirl_lightning.engine.completions import Completions
from swirl_lightning.engine.grammar import TokenIds


@dataclass(frozen=True)
class Samples:
    """G states or actions for each of B prompts; number n belongs to prompt n // G; N = B * G.

    Attributes:
        prompts: B prompts as ids.
        completions: what was emitted, (N, L), the EOS included.
        contents: N content ids: the same without EOS and forced tokens.
    """

    prompts: list[TokenIds]
    completions: Completions
    contents: list[TokenIds]

    def __getitem__(self, part: slice) -> Samples:
        """Return the samples for some of the prompts."""
        size, (first, last, _) = self.group_size, part.indices(len(self.prompts))
        rows = slice(first * size, last * size)
        return Samples(self.prompts[part], self.completions.part(rows), self.contents[rows])

    @property
    def group_size(self) -> int:
        """Number G of samples for each prompt."""
        return len(self.contents) // len(self.prompts)
