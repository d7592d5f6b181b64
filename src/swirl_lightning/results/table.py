"""``results.json`` of a run: reading it, and its main columns as a table."""

from __future__ import annotations

import json
from pathlib import Path
from textwrap import fill
from typing import Any

from rich.console import Console
from rich.table import Column, Table

CONTACT_SHEET = "contact_sheet.png"
"""Image beside the predictions of a run."""

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
        view.add_row(fill(name, 22), *cells)  # so that a long name takes no room from the figures
    return view


def _cell(key: str, value: float) -> str:
    share = key.startswith(("fwm/", "idm/")) and not key.endswith("log_prob")
    return f"{100 * value:.1f}" if share else f"{value:.3f}"
