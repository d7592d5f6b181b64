"""Micro-batching by tokens, with smaller micro-batches once memory runs out."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from swirl_lightning.engine.out_of_memory import ran_out

Result = TypeVar("Result")


_RUNS_BEFORE_MORE = 64
"""Number of micro-batches that fit before a halved budget is doubled: what had taken the memory may be gone.

Not after a pass with gradient: that the forward pass fits says nothing of the backward pass, which is not repeated."""


@dataclass(frozen=True)
class Group:
    """Group of rows that share a prompt, or the beginning of one.

    Attributes:
        rows: indices of the rows.
        own: number of tokens that the longest row has for itself.
        shared: number of tokens that all rows share, and that are run once.
    """

    rows: tuple[int, ...]
    own: int
    shared: int = 0

    @property
    def tokens(self) -> int:
        """Number of tokens that run, with all rows as long as the longest."""
        return self.shared + len(self.rows) * self.own

    def split(self, tokens: int) -> list[Group]:
        """Split into as few groups of at most ``tokens`` tokens, or of one row, as can be; equally large ones."""
        most = max(1, (tokens - self.shared) // self.own)
        size = math.ceil(len(self.rows) / math.ceil(len(self.rows) / most))
        return [replace(self, rows=self.rows[i : i + size]) for i in range(0, len(self.rows), size)]


class TokenBudget:
    """Limit on the tokens of a micro-batch: groups of rows run in micro-batches of similar length.

    Args:
        tokens: the most that run at once; None takes a batch whole, for as long as memory lasts.
        option: of SWIRL that sets it, for messages.

    Attributes:
        tokens: the present limit.
        largest: tokens of the largest micro-batch of the last call that fitted.
    """

    def __init__(self, tokens: int | None = None, option: str = "max_tokens_per_forward") -> None:
        self.tokens, self.option, self.largest = tokens, option, 0
        self._given, self._fitted, self._held = tokens, 0, False

    def reset(self) -> None:
        """Forget that memory ran out: take the limit that was given."""
        self.tokens, self._fitted, self._held = self._given, 0, False

    def run(
        self, groups: Sequence[Group], work: Callable[[list[Group], bool], Result]
    ) -> list[tuple[list[int], Result]]:
        """Call ``work`` on micro-batches until all rows are done.

        If the device runs out of memory, the budget is halved, and what is left is split and run again. After some
        micro-batches that fit, the budget is doubled, up to where it began, unless it was a pass with gradient.

        Args:
            groups: the rows to run.
            work: takes a micro-batch, and whether it is one of several.

        Returns:
            Row indices and the result of each micro-batch.

        Raises:
            torch.OutOfMemoryError: a single row does not fit.
        """
        pending, self.largest = deque(self._pack(groups)), 0
        several = len(pending) > 1
        done: list[tuple[list[int], Result]] = []
        while pending:
            batch = pending.popleft()
            rows, tokens = [row for group in batch for row in group.rows], _padded(batch)
            try:
                done.append((rows, work(batch, several)))
                self._note(tokens)
                continue
            except RuntimeError as error:
                if not ran_out(error):
                    raise
                if len(rows) == 1:
                    raise torch.OutOfMemoryError(str(error)) from error
            # past the except: until then the traceback holds the tensors of the attempt
            self.tokens, self._fitted = max(1, min(tokens, self.tokens or tokens) // 2), 0
            self._held = self._held or torch.is_grad_enabled()
            torch.cuda.empty_cache()
            rank_zero_warn(
                f"out of memory with {tokens:,} tokens at once: going on with {self.tokens:,}; "
                f"{self.option}: {self.tokens} spares the attempt"
            )
            pending = deque(self._pack([group for left in (batch, *pending) for group in left]))
            several = True
        return done

    def _note(self, tokens: int) -> None:
        """Count a micro-batch that fitted."""
        self.largest, self._fitted = max(self.largest, tokens), self._fitted + 1
        enough = self._fitted >= _RUNS_BEFORE_MORE and not self._held
        if enough and self.tokens is not None and self.tokens != self._given:
            self.tokens, self._fitted = min(2 * self.tokens, self._given or 2 * self.tokens), 0

    def _pack(self, groups: Sequence[Group]) -> list[list[Group]]:
        """Form micro-batches within the budget, the largest groups first: if memory is short, that shows at once."""
        if self.tokens is None:
            return [list(groups)]
        pieces = [piece for group in groups for piece in group.split(self.tokens)]
        pieces.sort(key=lambda group: -group.tokens)  # stable
        batches: list[list[Group]] = []
        for piece in pieces:
            if not batches or (len(batches[-1]) + 1) * batches[-1][0].tokens > self.tokens:
                batches.append([])
            batches[-1].append(piece)
        return batches


def _padded(batch: Sequence[Group]) -> int:
    """Count the tokens of a micro-batch, each group padded to the largest."""
    return len(batch) * max(group.tokens for group in batch)
