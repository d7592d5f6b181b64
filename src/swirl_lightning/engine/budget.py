"""Micro-batching by tokens, with smaller micro-batches once memory runs out."""

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
    """Group of rows that share a prompt, or the beginning of one.

    Attributes:
        rows: indices of the rows.
        width: number of tokens of the longest row.
    """

    rows: tuple[int, ...]
    width: int

    def split(self, rows: int) -> list[Group]:
        """Split into groups of at most ``rows`` rows."""
        return [Group(self.rows[i : i + rows], self.width) for i in range(0, len(self.rows), rows)]


class TokenBudget:
    """Limit on the tokens of a forward pass: groups of rows run in micro-batches of similar length.

    Args:
        tokens: ``max_tokens`` of :class:`swirl_lightning.engine.config.EngineConfig`.
    """

    def __init__(self, tokens: int | None = None) -> None:
        self.tokens = tokens

    def run(
        self, groups: Sequence[Group], work: Callable[[list[Group], bool], Result]
    ) -> list[tuple[list[int], Result]]:
        """Call ``work`` on micro-batches until all rows are done.

        If the device runs out of memory, the budget is halved for good, and the micro-batch is split and run again.

        Args:
            groups: the rows to run.
            work: takes a micro-batch, and whether it is one of several.

        Returns:
            Row indices and the result of each micro-batch.

        Raises:
            torch.OutOfMemoryError: a single row does not fit.
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
        """Form micro-batches within the budget, the longest rows first: if memory is short, that shows at once."""
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
