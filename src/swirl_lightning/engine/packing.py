"""Packing of groups of sequences, the common prefix of a group only once (Prefix Grouper, arXiv 2506.05433)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby

import torch
from torch import Tensor, nn

from swirl_lightning.engine.grammar import TokenIds

MASK_UNREAD = torch.ones(1, 1, 1, 1, dtype=torch.bool)
"""Placeholder mask for attention that does not read one: of four dimensions, so that transformers builds none."""


@dataclass(frozen=True)
class Span:
    """Columns of one group within a row: its prefix, then its members.

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
    """Groups packed into rows: members attend to their group's prefix and, causally, to themselves.

    Args:
        groups: (prefix, members) as ids; no member is empty.
        device: of the tensors.
        one_row: puts all groups into one row, for :class:`swirl_lightning.engine.cpu.PackedAttention`; else each
            group has a row, and there is a mask.

    Attributes:
        ids: (R, T) long, padded with 0 on the right.
        positions: (R, T) long, position of each token in its own sequence, the prefix included.
        spans: columns of each group.
        used: Set by our attention. If still False after a forward pass, the model dropped ``packing``, and scores
            would be wrong.
    """

    def __init__(
        self, groups: Sequence[tuple[TokenIds, Sequence[TokenIds]]], device: torch.device, one_row: bool
    ) -> None:
        self.one_row = one_row
        self.used = False
        self.spans: list[Span] = []
        rows: list[list[int]] = []
        for prefix, members in groups:
            if not (one_row and rows):
                rows.append([])
            self.spans.append(Span(len(rows[-1]), len(prefix), tuple(len(member) for member in members)))
            rows[-1] += [*prefix, *(token for member in members for token in member)]
        self.ids = _stack([torch.tensor(row) for row in rows], device)  # (R, T)
        self._begins = self._find_begins(device)
        own, prefix_start, prefix_end = self._begins
        self.positions = torch.arange(self.ids.shape[1], device=device) - own + prefix_end - prefix_start  # (R, T)

    def _find_begins(self, device: torch.device) -> Tensor:
        """Return (3, R, T): the column where a token's sequence begins, and where its prefix begins and ends.

        Tokens of a prefix have an empty prefix.
        """
        found: list[Tensor] = []
        for span in self.spans:
            own = torch.tensor([span.start, *span.starts()])
            begin = torch.full_like(own, span.start)
            end = begin + span.prefix
            end[0] = span.start
            lengths = torch.tensor([span.prefix, *span.members])
            found.append(torch.stack([own, begin, end], 1).repeat_interleave(lengths, 0))  # (T, 3)
        return _stack([torch.cat(found)] if self.one_row else found, device).permute(2, 0, 1)

    def places(self) -> list[tuple[int, int]]:
        """Return row and column of each member's first token, group by group."""
        return [(0 if self.one_row else n, column) for n, span in enumerate(self.spans) for column in span.starts()]

    def running_sum(self, values: Tensor) -> Tensor:
        """Sum ``values`` (R, T) over each token's sequence, from its prefix to the token itself; returns (R, T)."""
        total = nn.functional.pad(values.cumsum(1), (1, 0))  # (R, T + 1)
        own, prefix_start, prefix_end = self._begins
        return total[:, 1:] - total.gather(1, own) + total.gather(1, prefix_end) - total.gather(1, prefix_start)

    @cached_property
    def mask(self) -> Tensor:
        """Attention mask (R, 1, T, T) bool, True where a token attends; with ``one_row`` a placeholder."""
        if self.one_row:
            return MASK_UNREAD
        own, _, prefix_end = self._begins
        columns = torch.arange(self.ids.shape[1], device=self.ids.device)
        before = columns[:, None] >= columns  # (T, T)
        mine = columns >= own[:, :, None]  # (R, T, T): of the sequence itself
        return (before & (mine | (columns < prefix_end[:, :, None])))[:, None]


def _stack(rows: Sequence[Tensor], device: torch.device) -> Tensor:
    return nn.utils.rnn.pad_sequence(list(rows), batch_first=True).to(device)
