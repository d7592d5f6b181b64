"""Packing of groups of sequences into one row, the prefix of a group only once (Prefix Grouper, arXiv 2506.05433)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor, nn

from swirl_lightning.engine.grammar import TokenIds

MASK_UNREAD = torch.ones(1, 1, 1, 1, dtype=torch.bool)
"""Placeholder mask for attention that does not read one: of four dimensions, so that transformers builds none."""


@dataclass(frozen=True)
class Span:
    """Columns of one group: its prefix, then its members.

    Attributes:
        start: column of its first token.
        prefix: number of tokens of the prefix; may be 0.
        members: number of tokens of each member.
    """

    start: int
    prefix: int
    members: tuple[int, ...]

    @property
    def end(self) -> int:
        """Column after the last token."""
        return self.start + self.prefix + sum(self.members)

    def starts(self) -> list[int]:
        """Return the column of each member's first token."""
        first = self.start + self.prefix
        return [first + sum(self.members[:n]) for n in range(len(self.members))]

    def both(self) -> tuple[slice, slice]:
        """Return the columns of the prefix, and of all members."""
        first = self.start + self.prefix
        return slice(self.start, first), slice(first, self.end)

    def runs(self) -> list[tuple[int, int, int]]:
        """Return (start, count, length) of the prefix, then of each series of members of equal length."""
        found, at = [], self.start
        for length, equal in [(self.prefix, [0])] * (self.prefix > 0) + [
            (length, list(equal)) for length, equal in groupby(self.members)
        ]:
            found.append((at, len(equal), length))
            at += len(equal) * length
        return found


class Packing:
    """Groups packed into one row: members attend to their group's prefix and, causally, to themselves.

    Args:
        groups: (prefix, members) as ids; no member is empty.
        device: of the tensors.

    Attributes:
        ids: (1, T) long.
        positions: (1, T) long, position of each token in its own sequence, the prefix included.
        spans: columns of each group.
        used: Set by our attention. If still False after a forward pass, the model dropped ``packing``, and scores
            would be wrong.
    """

    def __init__(self, groups: Sequence[tuple[TokenIds, Sequence[TokenIds]]], device: torch.device) -> None:
        self.used = False
        self.spans: list[Span] = []
        row: list[int] = []
        for prefix, members in groups:
            self.spans.append(Span(len(row), len(prefix), tuple(len(member) for member in members)))
            row += [*prefix, *(token for member in members for token in member)]
        self.ids = torch.tensor([row], device=device)  # (1, T)
        self._begins = self._find_begins().to(device)
        own, prefix_start, prefix_end = self._begins
        self.positions = torch.arange(len(row), device=device) - own + prefix_end - prefix_start  # (1, T)

    def _find_begins(self) -> Tensor:
        """Return (3, 1, T): the column where a token's sequence begins, and where its prefix begins and ends.

        Tokens of a prefix have an empty prefix.
        """
        found: list[Tensor] = []
        for span in self.spans:
            own = torch.tensor([span.start, *span.starts()], device="cpu")
            begin = torch.full_like(own, span.start)
            end = begin + span.prefix
            end[0] = span.start
            lengths = torch.tensor([span.prefix, *span.members], device="cpu")
            found.append(torch.stack([own, begin, end]).repeat_interleave(lengths, 1))  # (3, T)
        return torch.cat(found, 1)[:, None]

    def columns(self) -> list[int]:
        """Return the column of each member's first token, group by group."""
        return [column for span in self.spans for column in span.starts()]

    def running_sum(self, values: Tensor) -> Tensor:
        """Sum ``values`` (1, T) over each token's sequence, from its prefix to the token itself; returns (1, T)."""
        total = nn.functional.pad(values.cumsum(1), (1, 0))  # (1, T + 1)
        own, prefix_start, prefix_end = self._begins
        return total[:, 1:] - total.gather(1, own) + total.gather(1, prefix_end) - total.gather(1, prefix_start)
