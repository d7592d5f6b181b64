"""``swirl report RUN [RUN ...]``, which puts results of runs beside the paper's, in one table per suite.

Also ``python -m swirl_lightning.results.report RUN [RUN ...]``.
"""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from swirl_lightning.console.options import subcommand_parser
from swirl_lightning.console.run import printable, run_command
from swirl_lightning.files.markdown import escaped
from swirl_lightning.files.paths import relative_to
from swirl_lightning.files.writing import whole_file
from swirl_lightning.results import curves
from swirl_lightning.results.paper import SUITES, Row, SuiteTable
from swirl_lightning.results.table import COLUMNS, CONTACT_SHEET, FILE, PREDICTIONS, read, show

_SPLITS = ("test", "validation")
_REWARDS = ("fwm/reward", "idm/reward")
_SMOOTHED = 20  # steps of a running mean of rewards
_MOST_PANELS = 48  # of a report's image
_LONGEST_NAME = 60  # characters of a label in it
JUDGED = re.compile(r"/judge(/|$)")
"""Within the keys of a judge's scores."""
JUDGED_BY = {
    "state": re.compile(r"^fwm/.*/judge(?!/quality)"),
    "quality": re.compile(r"^fwm/.*/judge/(quality|overall)"),
    "action": re.compile(r"^idm/"),
}
"""What a template asks about -> keys of the scores that rest on its answers."""

Tasks = tuple[str, ...] | None
"""Tasks that a row is over, :data:`ALL` of its suite, or None where the suite has no such choice."""
ALL = ("all",)

TestedRow = tuple[str, Row, dict[str, Any], Path]
"""Name of a row, its values, the facts about it, and its file."""


@dataclass
class SuiteReport:
    """Table of a suite, with notes and images.

    Attributes:
        title: suite, and the split where it is not the test split.
        heading: of the columns, without the first.
        rows: name -> cells.
        notes: counts and missing metrics.
        images: contact sheets.
    """

    title: str
    heading: list[str]
    rows: dict[str, list[str]]
    notes: list[str] = field(default_factory=list)
    images: list[Path] = field(default_factory=list)


def main(args: Sequence[str] | None = None) -> None:
    """Print the tables and write them as Markdown and HTML.

    Raises:
        FileNotFoundError: a run has no results.
    """
    parser = subcommand_parser(
        "report",
        "RUN [RUN ...]",
        "Results of runs beside the paper's, and curves over iterations, as Markdown, as\nHTML and as an image.",
        "swirl report runs/mine runs/other --out tables/mine",
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help=f"a run's folder, or a {FILE}")
    parser.add_argument(
        "--out", metavar="FILE", help="without ending; default: report in the run's folder, or here for several"
    )
    options = parser.parse_args(args)
    files = [results_file(run) for run in options.runs]
    for path in files:
        for split in reversed(_SPLITS):
            show(path, split)
    reports = build(files)
    out = Path(options.out or (files[0].parent / "report" if len(files) == 1 else "report"))
    out.parent.mkdir(parents=True, exist_ok=True)
    console = Console() if Console().is_terminal else Console(width=160)
    for report in reports:
        console.print(_rich(report))
    drawn = None
    if not curves.available():
        console.print(escape(f"curves over iterations and steps need matplotlib: {curves.PLOTS}"))
    elif panels := panels_of(files)[:_MOST_PANELS]:
        drawn = Path(f"{out}.png")
        try:
            curves.draw(panels, drawn)
        except (ValueError, ArithmeticError) as error:  # of numbers that have no axis
            drawn = None
            console.print(escape(f"the curves cannot be drawn ({error}): look for a value out of range in the tables"))
    for ending, text in (("md", markdown(reports, out.parent, drawn)), ("html", as_html(reports, out.parent, drawn))):
        with whole_file(f"{out}.{ending}") as file:
            file.write(text.encode())
    console.print(f"written: {out}.md, {out}.html" + (f", {drawn}" if drawn else ""))


def results_file(run: str | Path) -> Path:
    """Find ``results.json`` of a run: the file itself, the one in the folder, or the newest one below it.

    Raises:
        FileNotFoundError: there is none.
    """
    run = Path(run)
    if run.is_file():
        return run
    if (run / FILE).is_file():
        return run / FILE
    found = sorted((path for path in run.glob(f"**/{FILE}") if path.is_file()), key=lambda path: path.stat().st_mtime)
    if not found:
        raise FileNotFoundError(f"no {FILE} in {run}: test a checkpoint first (swirl test), or name another folder")
    return found[-1]


def build(files: Sequence[Path]) -> list[SuiteReport]:
    """Build one report for each suite and split that the runs have, and for the paper's further tables of the suite."""
    found: dict[tuple[str, str, Tasks], list[TestedRow]] = {}
    labels = _labels(files)
    for path in files:
        results = read(path)
        about = results.get("about", {})
        for split in _SPLITS:
            for row, values in results.get(split, {}).items():
                facts = {"label": row, **about.get(split, {}).get(row, {})}
                facts["label"] += _best_of(facts)
                name = printable(row if len(files) == 1 else f"{labels[path]}: {row}")
                place = found.setdefault((printable(facts.get("suite", "results")), split, _tasks(facts)), [])
                place.append((name, values, facts, path))
    ordered = sorted(found.items(), key=lambda item: (*item[0][:2], str(item[0][2])))
    return [report for (suite, split, tasks), rows in ordered for report in _reports(suite, split, tasks, rows)]


def _tasks(facts: dict[str, Any]) -> Tasks:
    """Return the tasks that a row is over: rows of others are not set beside it."""
    data = facts.get("settings", {}).get("data") or {}
    if "task" in data:
        return (printable(data["task"]),)
    if "tasks" not in data:
        return None
    given = data["tasks"]
    return tuple(sorted(map(printable, given))) if isinstance(given, list) else ALL


def _reports(suite: str, split: str, tasks: Tasks, rows: list[TestedRow]) -> list[SuiteReport]:
    """Build the table of a suite, and of each part that has more columns of one's own, or more rows of the paper."""
    layout = SUITES.get(suite) or _own_layout([values for _, values, _, _ in rows])
    labels = [facts["label"] for _, _, facts, _ in rows]
    paper = layout.paper_beside(labels) if split == "test" else {}
    others = layout.tasks is not None and tasks is not None and layout.tasks != set(tasks)
    paper = {} if others else paper
    every = [*paper.values(), *(values for _, values, _, _ in rows)]
    of = "" if tasks is None else ", all tasks" if tasks == ALL else f", tasks {', '.join(tasks)}"
    whole = _table(f"{suite} ({split}{of})", layout, paper, every, rows)
    if others and layout.paper and split == "test":
        named = ", ".join(sorted(layout.tasks or ()))
        whole.notes.append(f"the paper's rows are over {named}, and not set beside rows over other tasks (data.tasks)")
    for name, values, facts, path in rows:
        whole.notes += _notes(name, split, values, facts)
        sheet = path.parent / PREDICTIONS / CONTACT_SHEET
        if split == "test" and sheet.is_file() and sheet not in whole.images:
            whole.images.append(sheet)
    reports = [whole]
    for name, part in layout.parts.items() if split == "test" and not others else ():
        beside, own = part.paper_beside(labels), [values for _, values, _, _ in rows]
        keys = {key for key in part.columns if any(key in values for values in own)}
        if beside and keys and not (keys <= set(layout.columns) and set(beside) <= set(paper)):
            reports.append(_table(f"{suite} ({split}{of}), {name}", part, beside, own, rows))
    return reports


def _table(
    title: str, layout: SuiteTable, paper: dict[str, Row], filled: Sequence[Row], rows: list[TestedRow]
) -> SuiteReport:
    """Lay out the paper's rows and one's own, in the columns of which one of the ``filled`` rows has a value."""
    keys = [key for key in layout.columns if any(row.get(key) is not None for row in filled)]
    factors = {key: layout.factors.get(key, 1) for key in keys}
    # the paper's values are on its scale already
    other = {key for key in keys if JUDGED.search(key) and not _as_in_the_paper(key, rows, layout.judge)}
    table = {
        name: [_cell(row.get(key)) + ("†" if row.get(key) is not None and key in other else "") for key in keys]
        for name, row in paper.items()
    }
    report = SuiteReport(title, [layout.columns[key] for key in keys], table)
    for name, values, facts, _ in rows:
        counts = {key: facts["rows"][key] for key in keys if key in values and key in facts.get("rows", {})}
        most = max(counts.values(), default=0)
        cells = [_cell(values[key] * factors[key] if key in values else None) for key in keys]
        fewer = [f" ({counts[key]})" if counts.get(key, most) < most else "" for key in keys]
        table[name] = [cell + count for cell, count in zip(cells, fewer, strict=True)]
        if most:
            beside = ", those with a number in brackets over so many" if any(fewer) else ""
            report.notes.append(f"{printable(name)}: scores over {most} records{beside}")
    if any(row.get(key) is not None for row in paper.values() for key in other):
        report.notes.append(
            "† other template: the score of the paper's judge under its wording, no bar for the judged rows here"
        )
    return report


def panels_of(files: Sequence[Path]) -> list[curves.Panel]:
    """Make the diagrams of runs: sampled scores over the rows of their tables, and rewards over steps."""
    labels = _labels(files)
    tables = {labels[path]: read(path) for path in files}
    panels = []
    for split in _SPLITS:
        rows = {run: results.get(split, {}) for run, results in tables.items()}
        names = list(dict.fromkeys(name for found in rows.values() for name in found))
        keys = dict.fromkeys(key for found in rows.values() for row in found.values() for key in row)
        for key in [key for key in keys if "/sampled/" in key] if len(names) > 1 else []:
            lines = {
                _short(run): [_over_rows({names.index(name): row[key] for name, row in found.items() if key in row})]
                for run, found in rows.items()
                if any(key in row for row in found.values())
            }
            title = f"{split}: {COLUMNS.get(key, printable(key))}"
            panels.append(curves.Panel(title, lines, "", [_short(name) for name in names]))
    found = {labels[path]: curves.scalars(path.resolve().parent, _REWARDS) for path in files}
    for tag in _REWARDS:
        if lines := {_short(run): [tags[tag].smoothed(_SMOOTHED)] for run, tags in found.items() if tag in tags}:
            panels.append(curves.Panel(f"{tag}, mean of {_SMOOTHED} steps", lines))
    return panels


def _short(name: str) -> str:
    """A name as a diagram has room for it."""
    return printable(name if len(name) <= _LONGEST_NAME else f"{name[:_LONGEST_NAME]}…")


def _over_rows(values: dict[int, float]) -> curves.Curve:
    places = sorted(values)
    return curves.Curve(np.array(places, dtype=float), np.array([values[place] for place in places]))


def _best_of(facts: dict[str, Any]) -> str:
    """Return what the label of a row lacks if each prediction is the best of several."""
    number = (facts.get("settings", {}).get("evaluation") or {}).get("best_of", 1)
    return f", best of {number}" if number != 1 else ""


def _own_layout(rows: Sequence[Row]) -> SuiteTable:
    """Return the columns of a suite that the paper does not have: the quickstart's, then all others by their keys."""
    columns = {**COLUMNS, **{key: COLUMNS.get(key, printable(key)) for values in rows for key in values}}
    return SuiteTable(columns, factors={key: 100 for key in COLUMNS if key.startswith(("fwm/", "idm/"))})


def _notes(name: str, split: str, values: Row, facts: dict[str, Any]) -> list[str]:
    notes = []
    for part, counts in facts.get("counts", {}).items():  # a suite may cut a split from a larger part
        if counts:
            of = "" if part == split else f" ({part})"
            notes.append(f"{name}{of}: " + ", ".join(f"{key} {value}" for key, value in counts.items()))
    for metric, cure in facts.get("missing", {}).items():
        notes.append(f"{name}: {metric} is missing ({cure})")
    for key, value in values.items():
        if key.endswith(("judge_unparsable", "judge_failed")) and value > 0:
            notes.append(f"{name}: {key} {value:.0f}; these are not in the mean")
    judge = facts.get("settings", {}).get("judge")
    if judge:
        for kind, keys in JUDGED_BY.items():
            if any(JUDGED.search(key) and keys.search(key) for key in values):
                what = kind if kind == "quality" else f"{kind}s"
                notes.append(f"{name}: {what} judged by {judge['model']}, template {_template(judge, kind)}")
    return [printable(note) for note in notes]


def _template(judge: dict[str, Any], kind: str) -> str:
    """Name a template with its hash and source, as far as the results tell."""
    facts = judge.get("templates", {}).get(kind, {})
    source = f", from {facts['source']}" if facts.get("source") else ""
    return f"{facts.get('name', 'unknown')} ({facts.get('hash', 'no hash')}{source})"


def _as_in_the_paper(key: str, rows: Sequence[TestedRow], model: str) -> bool:
    """Tell whether all rows with a value are judged by the paper's model, in its wording as their templates say."""
    kinds = [kind for kind, keys in JUDGED_BY.items() if keys.search(key)]
    judges = [facts.get("settings", {}).get("judge") or {} for _, values, facts, _ in rows if key in values]
    return all(
        re.fullmatch(model, str(judge.get("model")))
        and all(judge.get("templates", {}).get(kind, {}).get("paper") is True for kind in kinds)
        for judge in judges
    )


def markdown(reports: Sequence[SuiteReport], folder: Path, drawn: Path | None = None) -> str:
    """Write all tables as Markdown, with the image of the curves; images are linked relative to ``folder``."""
    lines = ["# Results", ""]
    for report in reports:
        lines += [f"## {escaped(report.title)}", ""]
        lines.append("| | " + " | ".join(map(escaped, report.heading)) + " |")
        lines.append("|---|" + "---:|" * len(report.heading))
        lines += [f"| {escaped(name)} | " + " | ".join(cells) + " |" for name, cells in report.rows.items()]
        lines += ["", *(f"- {escaped(note)}" for note in report.notes)]
        lines += [f"\n![before, after, predicted]({relative_to(folder, image)})" for image in report.images]
        lines.append("")
    if drawn:
        lines += [f"![curves]({relative_to(folder, drawn)})", ""]
    return "\n".join(lines)


def as_html(reports: Sequence[SuiteReport], folder: Path, drawn: Path | None = None) -> str:
    """Write the same as one HTML page without scripts."""
    parts = [
        "<!doctype html><meta charset=utf-8><title>Results</title>",
        "<style>body{font:15px sans-serif;margin:2em}table{border-collapse:collapse}"
        "td,th{border-bottom:1px solid #ccc;padding:.3em .8em;text-align:right}"
        "td:first-child{text-align:left}img{max-width:100%}</style><h1>Results</h1>",
    ]
    for report in reports:
        parts.append(f"<h2>{html.escape(report.title)}</h2><table><tr><th></th>")
        parts += [f"<th>{html.escape(name)}</th>" for name in report.heading]
        for name, cells in report.rows.items():
            parts.append(f"</tr><tr><td>{html.escape(name)}</td>")
            parts += [f"<td>{html.escape(cell)}</td>" for cell in cells]
        parts.append("</tr></table><ul>")
        parts += [f"<li>{html.escape(note)}</li>" for note in report.notes]
        parts.append("</ul>")
        parts += [
            f'<img alt="before, after, predicted" src="{html.escape(relative_to(folder, image))}">'
            for image in report.images
        ]
    if drawn:
        parts.append(f'<img alt="curves" src="{html.escape(relative_to(folder, drawn))}">')
    return "\n".join(parts) + "\n"


def _rich(report: SuiteReport) -> Table:
    view = Table("", *map(escape, report.heading), title=escape(report.title), caption=escape("\n".join(report.notes)))
    for name, cells in report.rows.items():
        view.add_row(escape(name), *cells)
    return view


def _cell(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _labels(files: Sequence[Path]) -> dict[Path, str]:
    """Name runs by their folder, ``version_0`` by that above, too, and by more of those above where names are equal."""
    folders = {path: path.resolve().parent for path in files}
    for depth in range(1, 1 + max((len(folder.parts) for folder in folders.values()), default=1)):
        found = {p: "/".join(f.parts[-depth - f.name.startswith("version_") :]) for p, f in folders.items()}
        if len(set(found.values())) == len(set(folders.values())):
            break
    return found


if __name__ == "__main__":
    run_command(main)
