"""``results.json`` of a run, and its main columns as a table."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from textwrap import fill
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from swirl_lightning.console.run import printable
from swirl_lightning.files.locks import lock

PREDICTIONS = "predictions"
"""Name of the folder of predictions, in the run's folder."""

CONTACT_SHEET = "contact_sheet.png"
"""Name of the image beside the predictions of a run."""

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
        try:
            console.print(table(rows, title=escape(f"{split} · {path}")))
        except OSError as error:  # the log is on a full disk: what is shown is in the file
            warnings.warn(f"the table of {path} cannot be shown: {error}", stacklevel=2)


def read(path: str | Path) -> dict[str, dict[str, dict[str, Any]]]:
    """Read ``{split: {row: {metric: value}}}`` from a results file; empty if there is none.

    Beside the splits there is ``about``: what a row rests on, ``{split: {row: {counts, rows, missing, ...}}}``.

    Raises:
        OSError: it is a folder, or may not be read.
        ValueError: the file is no such table.
    """
    path = Path(path)
    if not path.exists():
        return {}
    if not path.is_file():  # a pipe has no end
        raise OSError(f"{path} is no file of results; move it away to start a new table")
    try:
        found: dict[str, dict[str, dict[str, Any]]] = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON ({error}); move it away to start a new table") from None
    if (problem := _problem(found)) is not None:
        raise ValueError(f"{path} is no table of results: {problem}; move it away to start a new one")
    return found


def tested(results: dict[str, dict[str, dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Return the rows of the test, of the validation where nothing has been tested."""
    return results.get("test") or results.get("validation") or {}


def fitted(results: dict[str, dict[str, dict[str, Any]]]) -> list[str]:
    """Return the names of the rows that a training has added, rather than a command that measures."""
    known = results.get("about", {}).get("validation", {})
    return [
        row
        for row in results.get("validation", {})
        if (facts := known.get(row)) and facts.get("label") != "base" and "checkpoint" not in facts.get("settings", {})
    ]


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keeps other processes from writing a results file between reading and writing it here.

    On a file system without locks, it cannot: a fit has warned of that.
    """
    held = lock(path.with_suffix(".lock"))
    try:
        yield
    finally:
        if held is not None:
            held.release()


def _problem(found: Any) -> str | None:
    """Return what keeps a parsed file from being read as a table, or None."""
    if not isinstance(found, dict):
        return "an object is needed"
    for split, rows in found.items():
        if not isinstance(rows, dict) or not all(isinstance(values, dict) for values in rows.values()):
            return f"{split!r} must be an object of objects"
        fits = _is_about if split == "about" else _is_number
        for row, values in rows.items():
            for key, value in values.items():
                if not fits(value):
                    return f"{split!r}, {row!r}, {key!r} cannot be {str(value)[:60]!r}"
    return None


def _is_number(value: Any) -> bool:
    return isinstance(value, float) or (type(value) is int and abs(value) < 2**63)


def _is_about(facts: Any) -> bool:
    """Tell whether facts have the types in which `swirl_lightning.results.about` writes what reports read of them."""
    if not isinstance(facts, dict):
        return False
    kinds = {"label": str, "suite": str, "counts": dict, "rows": dict, "missing": dict, "settings": dict}
    if not all(isinstance(facts.get(name, kind()), kind) for name, kind in kinds.items()):
        return False
    judge, evaluation, data = (facts.get("settings", {}).get(name) for name in ("judge", "evaluation", "data"))
    if not isinstance(evaluation, dict | None) or not isinstance(data, dict | None):
        return False
    if not all(type(rows) is int for rows in facts.get("rows", {}).values()):
        return False
    counts = facts.get("counts", {}).values()
    return all(isinstance(count, dict) for count in counts) and (judge is None or _is_judge(judge))


def _is_judge(judge: Any) -> bool:
    templates = judge.get("templates", {}) if isinstance(judge, dict) else None
    return isinstance(templates, dict) and "model" in judge and all(isinstance(t, dict) for t in templates.values())


_LONGEST_NAME = 500  # characters of a row's name that are shown: to wrap very many takes long


def table(rows: dict[str, dict[str, float]], title: str = "") -> Table:
    """Lay out the main columns that any row has; * is greedy, the rest is sampled as in the paper."""
    columns = {key: name for key, name in COLUMNS.items() if any(key in row for row in rows.values())}
    view = Table(Column("", no_wrap=True), *columns.values(), title=title)
    for name, row in rows.items():
        cells = [_cell(key, row[key]) if key in row else "–" for key in columns]
        shown = fill(printable(name[:_LONGEST_NAME]), 22)  # so that a long name takes no room from the figures
        view.add_row(escape(shown), *cells)
    return view


def _cell(key: str, value: float) -> str:
    share = key.startswith(("fwm/", "idm/")) and not key.endswith("log_prob")
    return f"{100 * value:.1f}" if share else f"{value:.3f}"
