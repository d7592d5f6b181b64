"""Means over transitions, of all and by category, over all devices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from swirl_lightning.transition import Transition


def groups_of(transition: Transition, by: str) -> set[str]:
    """Names of the groups that a row is in: ``meta[by]`` is one, a list of several, or missing."""
    named = transition.meta.get(by)
    if isinstance(named, list | tuple | set):
        return set(map(str, named))
    return set() if named is None else {str(named)}


class CategoryMeans(Metric):
    """Base of metrics that are means of several values of each transition; subclasses implement ``update``.

    ``compute`` returns a dictionary: ``<name>`` is the mean over all rows that have the value, and
    ``<name>/<category>`` the mean within a category, ``<name>/<average>`` the mean of the means of several
    categories, whatever the number of their rows. A category without rows is left out of both.

    Args:
        names: of the values.
        categories: known in advance, so that all devices agree on them; rows of others count for the
            overall mean only.
        by: key of ``Transition.meta`` that holds a row's category, or a list of several.
        averages: name of each average -> its categories.
        kwargs: as for `torchmetrics.Metric`.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    sums: Tensor
    counts: Tensor

    def __init__(
        self,
        names: Sequence[str],
        categories: Sequence[str] = (),
        by: str = "task",
        averages: Mapping[str, Sequence[str]] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.names, self.categories, self.by = tuple(names), tuple(categories), by
        self.averages = dict(averages or {})
        shape = (len(self.categories) + 1, len(self.names))  # the last row is of all categories
        self.add_state("sums", torch.zeros(shape, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("counts", torch.zeros(shape, dtype=torch.int64), dist_reduce_fx="sum")

    def add(self, values: Sequence[Sequence[float | None]], transitions: Sequence[Transition]) -> None:
        """Add values of N rows; None where a row does not have the value."""
        for row, transition in zip(values, transitions, strict=True):
            mine = groups_of(transition, self.by)
            places = [n for n, category in enumerate(self.categories) if category in mine]
            for column, value in enumerate(row):
                if value is not None:
                    self.sums[[*places, -1], column] += value
                    self.counts[[*places, -1], column] += 1

    def row_counts(self) -> dict[str, Tensor]:
        """Count the rows behind each value of :meth:`compute`."""
        found: dict[str, Tensor] = {}
        for column, name in enumerate(self.names):
            keys = [*(f"{name}/{category}" for category in self.categories), name]
            found |= {key: count for key, count in zip(keys, self.counts[:, column], strict=True) if count > 0}
            for average, categories in self.averages.items():
                if parts := [found[key] for category in categories if (key := f"{name}/{category}") in found]:
                    found[f"{name}/{average}"] = torch.stack(parts).sum()
        return found

    def compute(self) -> dict[str, Tensor]:
        """Compute the means; see the class."""
        found = {}
        for column, name in enumerate(self.names):
            keys = [*(f"{name}/{category}" for category in self.categories), name]
            for place, key in enumerate(keys):
                if (count := self.counts[place, column]) > 0:
                    found[key] = (self.sums[place, column] / count).float()
            for average, categories in self.averages.items():
                means = [found[key] for category in categories if (key := f"{name}/{category}") in found]
                if means:
                    found[f"{name}/{average}"] = torch.stack(means).mean()
        return found
