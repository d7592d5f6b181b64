"""Number of rows behind each value of a collection of metrics."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import Tensor
from torchmetrics import Metric, MetricCollection


@runtime_checkable
class CountsRows(Protocol):
    """Metric that tells how many rows are behind its value, or behind each value of the dictionary that it computes."""

    def row_counts(self) -> Tensor | dict[str, Tensor]:
        """Count them, by the names of ``compute``."""


def row_counts(metrics: MetricCollection) -> dict[str, int]:
    """Count the rows behind the values of a collection, by the names of its ``compute``, over all ranks. Collective.

    Metrics that do not count rows are left out.
    """
    found: dict[str, int] = {}
    for key, metric in metrics.items():
        if isinstance(metric, Metric) and isinstance(metric, CountsRows):
            with metric.sync_context():
                counts = metric.row_counts()
            named = counts if isinstance(counts, dict) else {str(key): counts}
            found |= {name: int(count) for name, count in named.items()}
    return found
