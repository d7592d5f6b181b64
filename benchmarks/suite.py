"""Base of the evaluation suites: a folder in the official layout, and counts of its records."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from swirl_lightning.data.module import TransitionDataModule
from swirl_lightning.data.reading import first
from swirl_lightning.engine.ranges import check_ranges


class Suite(TransitionDataModule):
    """Benchmark in a folder of its official layout.

    Args:
        data_dir: the folder.
        strict: stop before the model loads if any record is broken; otherwise broken records are left out,
            counted in :attr:`counts`, and the first ten are named.
        bert: encoder of BERTScore, a hub name or a folder; None leaves that metric out.
        limit: number of records of the test split; None for all. They are the first ones; text suites spread
            them over their splits.
        kwargs: as for `TransitionDataModule`.

    Attributes:
        suite: name in reports.
        source: where to get the data, for messages.
        counts: ``{part: {records, used, skipped}}`` of the parts that were read so far.

    Raises:
        ValueError: ``limit`` is not positive.
    """

    suite = ""
    source = ""

    def __init__(
        self,
        data_dir: str,
        *,
        strict: bool = False,
        bert: str | None = None,
        limit: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_ranges("data", {"limit": limit}, limit="whole [1, inf) or null")
        self.data_dir = Path(data_dir)
        self.strict, self.bert, self.limit = strict, bert, limit
        self.counts: dict[str, dict[str, int]] = {}
        self._missing: dict[str, str] = {}

    def setup(self, stage: str) -> None:
        """Check and read what the command needs, and name the metrics that are left out."""
        super().setup(stage)
        self._missing = self._look_for_missing()
        if self._missing:
            reasons = [f"{name}: {reason}" for name, reason in self._missing.items()]
            rank_zero_warn(f"{self.suite}: metrics left out:{first(reasons)}")

    @property
    def missing_metrics(self) -> dict[str, str]:
        """Metrics that are not computed here, with the reason or the cure for each; known after `setup`."""
        return dict(self._missing)

    @abstractmethod
    def _look_for_missing(self) -> dict[str, str]:
        """Find the metrics that cannot be computed here, with the reasons."""
