"""A benchmark of your own: rows of lamps in words, an action that switches one, and a metric lamp by lamp.

Use it from YAML by its class path, with this folder on PYTHONPATH:

    data:
      class_path: my_benchmark.Lamps
      init_args: {data_dir: path/to/lamps, batch_size: 8}
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from torchmetrics import MetricCollection

from swirl_lightning import Transition, TransitionDataModule
from swirl_lightning.data import Split
from swirl_lightning.metrics.exact_match import ExactMatch
from swirl_lightning.metrics.row_mean import RowMean


class Lamps(TransitionDataModule):
    """Rows of lamps, a record for each time that one is switched.

    ``data_dir`` holds ``warmup.jsonl``, ``state_only.jsonl``, ``validation.jsonl`` and ``test.jsonl``, one record a
    line: ``{"before": "off off", "action": "switch lamp 2", "after": "off on"}``.

    Args:
        data_dir: the folder.
        kwargs: as for `TransitionDataModule`: batch_size, seed, pairs_per_iteration, ...

    Raises:
        FileNotFoundError: before the model loads, a file is missing.
        ValueError: a record is not as above; the message names file and line.
    """

    def __init__(self, data_dir: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.data_dir = Path(data_dir)

    def check(self) -> None:
        """Check that every split has its file."""
        missing = [name for name in get_args(Split) if not (self.data_dir / f"{name}.jsonl").is_file()]
        if missing:
            raise FileNotFoundError(f"{self.data_dir} lacks {', '.join(f'{name}.jsonl' for name in missing)}")

    def load_split(self, split: Split) -> Sequence[Transition]:
        """Read the records of a file."""
        path = self.data_dir / f"{split}.jsonl"
        with open(path, encoding="utf-8") as file:
            return [_transition(line, f"{path}:{number}") for number, line in enumerate(file, start=1)]

    def state_metrics(self) -> MetricCollection:
        """Make the share of lamps that are right, and of whole rows."""
        metrics = {"lamps": LampAccuracy("lamps"), "exact_match": ExactMatch("after")}
        return MetricCollection(metrics, compute_groups=False)


class LampAccuracy(RowMean):
    """Share of the lamps of a row that are predicted right, mean over rows."""

    def score(self, predicted: Sequence[str], wanted: Sequence[str]) -> list[float]:
        """Compute the score of each row, in [0, 1]; in a row of another length every lamp is wrong."""
        return [_share(guess.split(), truth.split()) for guess, truth in zip(predicted, wanted, strict=True)]


def _share(guess: list[str], truth: list[str]) -> float:
    return sum(a == b for a, b in zip(guess, truth, strict=True)) / len(truth) if len(guess) == len(truth) else 0.0


def _transition(line: str, place: str) -> Transition:
    try:
        record = json.loads(line)
        before, action, after = (record[name] for name in ("before", "action", "after"))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{place}: needs an object with before, action and after ({error!r})") from None
    return Transition(before, after, action, id=place.rpartition("/")[2])
