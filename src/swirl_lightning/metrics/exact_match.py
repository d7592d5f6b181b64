"""Share of predicted states or actions that equal the recorded ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from swirl_lightning.metrics.category_means import groups_of
from swirl_lightning.transition import State, Transition


class ExactMatch(Metric):
    """Share of exact matches with a field of the transition: images pixel by pixel, texts up to white space.

    A missing prediction (None) counts as wrong. A row without the field, such as the action of a
    state-only pair, is left out. NaN before the first row.

    Args:
        field: ``after`` (a predicted state) or ``action``.
        categories: with some, ``compute`` returns a dictionary: ``exact_match`` and, within a category that has rows,
            ``exact_match/<category>``.
        by: key of ``Transition.meta`` that holds a row's category, or a list of several.
        kwargs: as for `torchmetrics.Metric`.

    Raises:
        ValueError: ``field`` is something else.

    Example:
        >>> metric = ExactMatch("action")
        >>> rows = [Transition("a", "b", "turn left"), Transition("a", "c", "go")]
        >>> metric.update(["turn left", None], rows)
        >>> float(metric.compute())
        0.5
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    correct: Tensor
    total: Tensor

    def __init__(self, field: str = "after", categories: Sequence[str] = (), by: str = "task", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if field not in ("after", "action"):
            raise ValueError(f"field must be 'after' or 'action', got {field!r}")
        self.field, self.categories, self.by = field, tuple(categories), by
        for name in ("correct", "total"):  # of each category, and of all rows
            self.add_state(name, torch.zeros(len(categories) + 1, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, predicted: Sequence[State | None], transitions: Sequence[Transition]) -> None:
        """Add one prediction per transition."""
        for guess, transition in zip(predicted, transitions, strict=True):
            truth: State | None = getattr(transition, self.field)
            if truth is not None:
                mine = groups_of(transition, self.by)
                places = [*(n for n, category in enumerate(self.categories) if category in mine), -1]
                self.correct[places] += int(guess is not None and same_state(guess, truth))
                self.total[places] += 1

    def row_counts(self) -> Tensor | dict[str, Tensor]:
        """Count the rows behind each value of :meth:`compute`."""
        return self._named(self.total)

    def compute(self) -> Tensor | dict[str, Tensor]:
        """Compute the share of matches, in [0, 1]."""
        return self._named(self.correct.float() / self.total)

    def _named(self, values: Tensor) -> Tensor | dict[str, Tensor]:
        if not self.categories:
            return values[-1]
        keys = [*(f"exact_match/{category}" for category in self.categories), "exact_match"]
        return {key: value for key, value, total in zip(keys, values, self.total, strict=True) if total > 0}


def same_state(one: State, other: State) -> bool:
    """Tell whether two states are equal: same pixels, or same words."""
    if isinstance(one, str) or isinstance(other, str):
        return isinstance(one, str) and isinstance(other, str) and one.split() == other.split()
    return one.size == other.size and np.array_equal(np.asarray(one.convert("RGB")), np.asarray(other.convert("RGB")))
