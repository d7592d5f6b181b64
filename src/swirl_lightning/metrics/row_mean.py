"""Means of a score of each row, overall and by category, exact over several devices."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from swirl_lightning.metrics.category_means import groups_of
from swirl_lightning.transition import State, Transition


class RowMean(Metric, ABC):
    """Mean of a score over rows; subclasses define the score of a row.

    A missing or empty prediction scores 0 and stays in the denominator. A row without a label in
    ``field``, such as the action of a state-only pair, is left out. Sums are float64 and are added over
    devices, so that the result does not depend on the number of processes.

    Args:
        name: key of the result.
        field: ``after`` or ``action``, which a prediction is compared with.
        group_by: key of ``Transition.meta`` that holds a row's group, or a list of several; None for no groups.
        categories: the category of each known group. Each category with a row gets a result of its own,
            ``<name>/<category>``; rows of other groups count for the overall result alone.
        macro: take the mean over groups of the mean of each group; otherwise over rows.
        kwargs: as for `torchmetrics.Metric`.

    Raises:
        ValueError: unknown ``field``, or groups without ``group_by``.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    scores: Tensor
    rows: Tensor

    def __init__(
        self,
        name: str,
        *,
        field: str = "after",
        group_by: str | None = None,
        categories: Mapping[str, str] | None = None,
        macro: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if field not in ("after", "action"):
            raise ValueError(f"field must be 'after' or 'action', got {field!r}")
        if (group_by is None) != (categories is None):
            raise ValueError("group_by and categories go together")
        self.name, self.field, self.group_by, self.macro = name, field, group_by, macro
        self.categories = dict(categories or {"": ""})
        self.groups = {group: place for place, group in enumerate(self.categories)}
        # the last places are of rows without a known group, and of all rows
        self.add_state("scores", torch.zeros(len(self.groups) + 2, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("rows", torch.zeros(len(self.groups) + 2, dtype=torch.int64), dist_reduce_fx="sum")

    @abstractmethod
    def score(self, predicted: Sequence[str], wanted: Sequence[str]) -> Sequence[float]:
        """Compute scores of N pairs of texts, none of the predictions empty."""

    def update(self, predicted: Sequence[State | None], transitions: Sequence[Transition]) -> None:
        """Add one prediction per transition."""
        if len(predicted) != len(transitions):
            raise ValueError(f"{len(predicted)} predictions for {len(transitions)} transitions")
        places, guesses, truths = [], [], []
        for guess, row in zip(predicted, transitions, strict=True):
            truth = getattr(row, self.field)
            if truth is None:
                continue
            named = {""} if self.group_by is None else groups_of(row, self.group_by)
            mine = [self.groups[group] for group in named if group in self.groups] or [len(self.groups)]
            self.rows[[*mine, -1]] += 1
            if isinstance(guess, str) and guess.strip():
                places.append([*mine, -1])
                guesses.append(guess)
                truths.append(str(truth))
        if guesses:
            for place, value in zip(places, self.score(guesses, truths), strict=True):
                self.scores[place] += float(value)

    def compute(self) -> dict[str, Tensor]:
        """Compute ``name`` over all rows (NaN without a row), ``name/category`` for each category with a row."""
        return {key: self._mean(members) for key, members in self._members().items()}

    def row_counts(self) -> dict[str, Tensor]:
        """Count the rows behind each value of :meth:`compute`."""
        return {key: self.rows[members].sum() for key, members in self._members().items()}

    def _members(self) -> dict[str, list[int]]:
        """Places of the groups behind each result."""
        found = {self.name: list(range(len(self.rows) - 1)) if self.macro else [len(self.rows) - 1]}
        for category in sorted(set(self.categories.values())) if self.group_by is not None else ():
            members = [n for group, n in self.groups.items() if self.categories[group] == category]
            if any(int(self.rows[n]) for n in members):
                found[f"{self.name}/{category}"] = members
        return found

    def _mean(self, members: list[int]) -> Tensor:
        scores, rows = self.scores[members], self.rows[members]
        if not self.macro:
            return (scores.sum() / rows.sum()).float()
        seen = rows > 0
        return (scores[seen] / rows[seen]).mean().float()
