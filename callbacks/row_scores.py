"""The metrics of each transition for itself, for paired statistics."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from torchmetrics import MetricCollection

from swirl_lightning.callbacks.listener import EvaluationListener
from swirl_lightning.callbacks.run_folder import run_folder
from swirl_lightning.data.reading import BrokenRecord, lines, parse_object
from swirl_lightning.files.writing import remove_ranks, whole_file
from swirl_lightning.judge.metric import JudgeScore
from swirl_lightning.transition import State, Transition

FOLDER = "row_scores"


class RowScores(EvaluationListener):
    """Writes every metric of the benchmark, computed on each test transition alone, into the run's folder.

    ``row_scores/rank<r>.jsonl`` has a line per transition and mode: its id, the mode, and the metrics by the names
    that result tables give them. A metric that is pooled over transitions, such as effect accuracy, is that
    transition's own share here, so that its mean over lines differs from the table's. Metrics that compare whole
    sets of predictions (FID and its like) mean nothing here. A judge's scores are left out: the same question would be
    asked and paid twice. Does nothing in a ``fast_dev_run``.
    """

    def __init__(self) -> None:
        self._lines: list[dict[str, Any]] = []
        self._metrics: dict[str, Any] = {}

    def on_test_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Listen to the evaluator."""
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        benchmark: Any = trainer.datamodule  # type: ignore[attr-defined]
        self._lines, self._metrics = [], {}
        for role, metrics in (("fwm", benchmark.state_metrics()), ("idm", benchmark.action_metrics())):
            kept = {n: metric for n, metric in metrics.items(keep_base=True) if not isinstance(metric, JudgeScore)}
            for metric in kept.values():
                metric.distributed_available_fn = _alone
            # without groups, which torchmetrics forms of metrics that have the same state after the first row
            own = MetricCollection(kept, prefix=metrics.prefix, postfix=metrics.postfix, compute_groups=False)
            self._metrics[role] = own.to(pl_module.device)
        self.listen(pl_module)

    def on_test_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Write the file."""
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        self.stop()
        folder = run_folder(trainer) / FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        if trainer.is_global_zero:
            remove_ranks(folder, "rank", trainer.world_size)
        path = folder / f"rank{trainer.global_rank}.jsonl"
        with whole_file(path) as file:
            file.write("".join(json.dumps(line) + "\n" for line in self._lines).encode())

    def told(
        self, mode: str, rows: Sequence[Transition], states: Sequence[State | None], words: Sequence[str | None]
    ) -> None:
        """Score each prediction for itself."""
        for n, transition in enumerate(rows):
            line: dict[str, Any] = {"id": transition.id, "mode": mode}
            for role, guesses in (("fwm", states), ("idm", words)):
                if guesses[n] is None:  # this model was not asked
                    continue
                metrics = self._metrics[role]
                metrics.reset()
                metrics.update([guesses[n]], [transition])
                found = metrics.compute()
                line |= {f"{role}/{mode}/{name}": float(value) for name, value in found.items() if not value.isnan()}
            self._lines.append(line)


def _alone() -> bool:
    """Keep `compute` from waiting for other ranks: each has rows of its own."""
    return False


def read(folder: Path) -> dict[str, dict[str, float]]:
    """Read ``{id: {metric: score}}`` of a run's folder, over modes and ranks.

    Raises:
        ValueError: a line is damaged.
    """
    rows: dict[str, dict[str, float]] = {}
    for path in sorted((folder / FOLDER).glob("rank*.jsonl")):
        for place, text in lines(path):
            try:
                line = parse_object(text)
                scores = {key: float(value) for key, value in line.items() if key not in ("id", "mode")}
                if not all(map(math.isfinite, scores.values())):
                    raise ValueError("a score is not finite")
                rows.setdefault(str(line["id"]), {}).update(scores)
            except (BrokenRecord, ValueError, TypeError, KeyError, OverflowError) as error:
                raise ValueError(f"{place} is damaged ({error}): run the test again") from None
    return rows
