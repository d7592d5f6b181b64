"""Result table of a run: SFT, then each iteration, on validation and test."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from swirl_lightning.callbacks.run_folder import run_folder
from swirl_lightning.files.writing import whole_file
from swirl_lightning.results.about import about
from swirl_lightning.results.table import FILE, locked, read, show

_SPEED = frozenset(("batch_size", "warmup_batch_size", "eval_batch_size", "num_workers", "devices"))
"""Settings that change the speed of a test, and nothing of its results."""


class Results(Callback):
    """Keeps ``results.json`` in the run's folder and prints it as a table.

    During fit a row is added to ``validation`` after warm-up (``SFT``) and after each iteration. ``swirl test``
    adds a row to ``test``, named by the checkpoint. Rows of other names are kept.

    A name is the checkpoint's own (``SFT``, ``IDM→FWM``, ``SWIRL iteration 2``, ...), with ``shared weights`` and
    ``best of N`` where that is so. Testing the same checkpoint file with the same settings replaces its row. Where a
    row of that name is of another suite, file or setting, both are kept: the new one's name says what differs, as in
    ``SFT (data.limit 20)``, and a warning tells of it. Rows of fit always replace, as its checkpoints do. A
    ``fast_dev_run`` adds none.

    Args:
        row: name of the row, which replaces any of that name; None for a name as above.

    Example:
        >>> from swirl_lightning.callbacks import Results
        >>> callback = Results(row="best of 8")
    """

    def __init__(self, row: str | None = None) -> None:
        self.row = row

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse a table that cannot be read, before a model loads."""
        if stage != "predict":
            read(_path(trainer))

    def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Add a row during fit if warm-up or an iteration has ended, and not where it goes on or was cut short."""
        if trainer.sanity_checking:
            return
        fitting = trainer.training or trainer.state.fn == "fit"
        name = pl_module.phase.ends if fitting else pl_module.label
        if name is not None and (trainer.is_last_batch or not fitting):
            self._add(trainer, pl_module, "validation", "val/", name)

    def on_test_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Add a row for the weights that were tested."""
        self._add(trainer, pl_module, "test", "test/", pl_module.label)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the table."""
        path = _path(trainer)
        if trainer.is_global_zero and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            show(path, "validation")

    def _add(self, trainer: Trainer, pl_module: Any, split: str, prefix: str, label: str) -> None:
        values = {
            key.removeprefix(prefix): float(value)
            for key, value in trainer.callback_metrics.items()
            if key.startswith(prefix) and isinstance(value, torch.Tensor)
        }
        path, rows = _path(trainer), pl_module.evaluator.row_counts()
        if trainer.is_global_zero and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            facts = {"label": label, "rows": rows, **about(trainer, pl_module)}
            with locked(path):
                self._put(trainer, pl_module, split, facts, values, path)

    def _put(
        self, trainer: Trainer, pl_module: Any, split: str, facts: dict[str, Any], values: dict[str, float], path: Path
    ) -> None:
        results = read(path)
        facts = json.loads(json.dumps(facts))  # tuples become lists, as in the file
        rows, known = results.setdefault(split, {}), results.setdefault("about", {}).setdefault(split, {})
        row = self.row or _name(pl_module, facts["label"])
        if trainer.state.fn != "fit":
            if trainer.ckpt_path:
                facts["settings"]["checkpoint"] = os.path.relpath(trainer.ckpt_path, path.parent)
            standing = row
            trained = split == "validation"  # rows of tests name a checkpoint, but for those of older files
            if other := _others(known, row, facts, trained) if self.row is None else []:
                row = named = f"{row} ({', '.join(other)})"
                count = 1
                while _others(known, row, facts, trained):  # of a setting that names alone do not tell apart
                    row, count = f"{named} {count + 1}", count + 1
                rank_zero_warn(f"{path} keeps its row {standing!r}, which is of another test; this one is {row!r}")
        rows[row], known[row] = values, facts
        with whole_file(path) as file:
            file.write((json.dumps(results, indent=2) + "\n").encode())
        if split == "test":
            show(path, split)


def _name(pl_module: Any, label: str) -> str:
    """Name a row by the label of the weights, shared weights and best of N, as the paper's tables do."""
    best_of = pl_module.evaluation.best_of
    parts = [label, "shared weights" if pl_module.shared_weights else "", f"best of {best_of}" if best_of > 1 else ""]
    return ", ".join(filter(None, parts))


def _of(facts: dict[str, Any]) -> dict[str, Any]:
    """Return the facts of `about` that distinguish rows: suite and settings."""
    return {"suite": facts["suite"], **facts["settings"]}


def _others(known: dict[str, Any], row: str, facts: dict[str, Any], trained: bool) -> list[str]:
    """List the settings in which a standing row differs from the facts of a new one; none if there is no such row.

    ``trained``: rows that name no checkpoint are of the run's own training.
    """
    if row not in known:
        return []
    found = _differences(_of(known[row]), _of(facts))
    checkpoint = facts["settings"].get("checkpoint", "")
    if trained and "checkpoint" not in known[row]["settings"] and checkpoint.startswith(".."):
        found.append(f"checkpoint {checkpoint}")
    return found


def _differences(standing: dict[str, Any], now: dict[str, Any], prefix: str = "") -> list[str]:
    """List settings that differ, as ``data.limit 20``; one that is missing on either side is no difference."""
    found = []
    for key in (key for key in now if key in standing and key not in _SPEED):
        was, value = standing[key], now[key]
        if isinstance(was, dict) and isinstance(value, dict):
            found += _differences(was, value, f"{prefix}{key}.")
        elif was != value:
            long = isinstance(value, dict) or (isinstance(value, str) and value.startswith("{"))
            found.append(prefix + key if long else f"{prefix}{key} {value}")
    return found


def _path(trainer: Trainer) -> Path:
    """Return the path of the results file. Collective: ``log_dir`` is broadcast."""
    return run_folder(trainer) / FILE
