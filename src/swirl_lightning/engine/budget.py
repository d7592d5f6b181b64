"""Micro-batching by tokens: what runs at one time, and what happens when that was too much."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

Result = TypeVar("Result")


@dataclass(frozen=True)
class Group:
    """Rows that have a prompt, or the beginning of one, in common.

    Attributes:
        rows: numbers of the rows.
        width: tokens of the longest row.
    """

    rows: tuple[int, ...]
    width: int

    def split(self, rows: int) -> list[Group]:
        """Pieces of at most ``rows`` rows."""
        return [Group(self.rows[i : i + rows], self.width) for i in range(0, len(self.rows), rows)]


class TokenBudget:
    """Runs groups of rows in micro-batches of similar length.

    Args:
        tokens: of one micro-batch, rows times the longest; None runs everything at once, for as long as
            memory lasts. A single row is run whatever its length.
    """

    def __init__(self, tokens: int | None = None) -> None:
        self.tokens = tokens

    def run(
        self, groups: Sequence[Group], work: Callable[[list[Group], bool], Result]
    ) -> list[tuple[list[int], Result]]:
        """Call ``work`` on micro-batches until all rows are done.

        Where the device runs out of memory the budget is halved, for good, and the micro-batch taken again.

        Args:
            groups: what there is to do.
            work: takes a micro-batch, and whether it is one of several.

        Returns:
            row numbers and the result, for each micro-batch.
        """
        pending = deque(self._pack(groups))
        several = len(pending) > 1
        done: list[tuple[list[int], Result]] = []
        while pending:
            batch = pending.popleft()
            rows = [row for group in batch for row in group.rows]
            try:
                done.append((rows, work(batch, several)))
                continue
            except torch.OutOfMemoryError:
                if len(rows) == 1:
                    raise
            # past the except: until then the traceback holds the tensors of the attempt
            tokens = len(rows) * max(group.width for group in batch)
            self.tokens = max(1, min(tokens, self.tokens or tokens) // 2)
            torch.cuda.empty_cache()
            rank_zero_warn(
                f"out of memory with {tokens:,} tokens in one forward pass: going on with {self.tokens:,}; "
                f"max_tokens_per_forward: {self.tokens} spares the attempt"
            )
            pending.extendleft(reversed(self._pack(batch)))
            several = True
        return done

    def _pack(self, groups: Sequence[Group]) -> list[list[Group]]:
        """Micro-batches within the budget, the longest rows first: if memory is short it shows at once."""
        if self.tokens is None:
            return [list(groups)]
        pieces = [piece for group in groups for piece in group.split(max(1, self.tokens // group.width))]
        pieces.sort(key=lambda group: -group.width)  # stable
        batches: list[list[Group]] = []
        rows = width = 0
        for piece in pieces:
            if not batches or (rows + len(piece.rows)) * width > self.tokens:
                batches.append([])
                rows, width = 0, piece.width
            batches[-1].append(piece)
            rows += len(piece.rows)
        return batches
