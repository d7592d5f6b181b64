"""The result table of a run: SFT, then each iteration, on validation and test."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console
from rich.table import Column, Table

from swirl_lightning.callbacks._about import about

FILE = "results.json"
COLUMNS = {
    "fwm/sampled/effect_accuracy": "effect",
    "fwm/sampled/preservation": "kept",
    "fwm/sampled/exact_match": "exact",
    "fwm/greedy/effect_accuracy": "effect*",
    "fwm/greedy/exact_match": "exact*",
    "idm/sampled/exact_match": "action",
    "idm/greedy/exact_match": "action*",
    "identifiability": "logQ(z|x,ŷ)",
    "likelihood": "logP(y|x,ẑ)",
}


class Results(Callback):
    """Keeps ``results.json`` in the run's folder and prints it as a table.

    During fit a row is added to ``validation`` when a result stands: after warm-up (``SFT``) and after each
    iteration. ``swirl test`` adds a row to ``test``, named by what the checkpoint holds. Rows of
    other runs of the same folder are kept; a row of the same name is replaced.

    Args:
        row: name of the row; None takes the checkpoint's own (``SFT``, ``SWIRL iteration 2``, ...).

    Example:
        >>> from swirl_lightning.callbacks import Results
        >>> callback = Results(row="best of 8")
    """

    def __init__(self, row: str | None = None) -> None:
        self.row = row

    def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
        """During fit: a row if a result stands at the end of this epoch."""
        if trainer.sanity_checking or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        name = pl_module.phase.ends if trainer.training or trainer.state.fn == "fit" else pl_module.label
        if name is not None:
            self._add(trainer, pl_module, "validation", "val/", self.row or name)

    def on_test_end(self, trainer: Trainer, pl_module: Any) -> None:
        """A row for the weights that were tested."""
        self._add(trainer, pl_module, "test", "test/", self.row or pl_module.label)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print what was gathered."""
        path = _path(trainer)
        if trainer.is_global_zero:
            show(path, "validation")

    def _add(self, trainer: Trainer, pl_module: Any, split: str, prefix: str, row: str) -> None:
        values = {
            key.removeprefix(prefix): float(value)
            for key, value in trainer.callback_metrics.items()
            if key.startswith(prefix) and isinstance(value, torch.Tensor)
        }
        path = _path(trainer)
        if not trainer.is_global_zero:
            return
        results = read(path)
        results.setdefault(split, {})[row] = values
        results.setdefault("about", {}).setdefault(split, {})[row] = about(trainer, pl_module)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(results, indent=2) + "\n")
        os.replace(partial, path)  # an interrupted run leaves the old table, not half of one
        if split == "test":
            show(path, split)


def show(path: str | Path, split: str) -> None:
    """Print the table of one split of a results file, if it has rows."""
    if rows := read(path).get(split):
        console = Console()
        if not console.is_terminal:
            console = Console(width=120)  # a log file has no width; 80 would cut the columns
        console.print(table(rows, title=f"{split} · {path}"))


def read(path: str | Path) -> dict[str, dict[str, dict[str, Any]]]:
    """``{split: {row: {metric: value}}}`` of a results file; empty if there is none.

    Beside the splits there is ``about``: what a row rests on, ``{split: {row: {counts, missing, ...}}}``.
    """
    path = Path(path)
    if not path.is_file():
        return {}
    try:
        found: dict[str, dict[str, dict[str, Any]]] = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not valid JSON ({error}); move it away to start a new table") from None
    return found


def table(rows: dict[str, dict[str, float]], title: str = "") -> Table:
    """The main columns that any row has, as a rich table; * is greedy, the rest as the paper samples."""
    columns = {key: name for key, name in COLUMNS.items() if any(key in row for row in rows.values())}
    view = Table(Column("", no_wrap=True), *columns.values(), title=title)
    for name, row in rows.items():
        cells = [_cell(key, row[key]) if key in row else "–" for key in columns]
        view.add_row(name, *cells)
    return view


def _cell(key: str, value: float) -> str:
    share = key.startswith(("fwm/", "idm/")) and not key.endswith("log_prob")
    return f"{100 * value:.1f}" if share else f"{value:.3f}"


def _path(trainer: Trainer) -> Path:
    """Collective: every rank must ask, since ``log_dir`` is broadcast."""
    return Path(trainer.log_dir or trainer.default_root_dir) / FILE
