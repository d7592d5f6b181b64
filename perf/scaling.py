"""Time and memory of our step as group, state, vocabulary and batch grow; each point in a process of its own.

python -m perf.scaling --threads 2 --json runs/perf/scaling.json
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from perf.common import CASES, Case, small
from perf.runs import MIB, Runner, medians, parser, rollout_tokens, write_json


def axes(case: Case) -> dict[str, dict[int, Case]]:
    """Return the cases along each axis, by the value that varies; the rest is one pair of the text case, G 8."""
    one, length, vocabulary = replace(case, pairs=1), case.completion, case.vocabulary
    frame = case.action + case.frame
    return {
        "group size": {n: replace(one, prompt=8 * length, group_size=n) for n in (4, 8, 16, 32)},
        "state length": {
            n: replace(one, prompt=n + frame, completion=n) for n in (length // 2, length, 2 * length, 4 * length)
        },
        "vocabulary": {
            n: replace(one, vocabulary=n)
            for n in (vocabulary, 2 * vocabulary, 4 * vocabulary, vocabulary * 264_192 // 32_000)
        },
        "batch": {n: replace(case, pairs=n) for n in (1, 2, 4)},
    }


def main(arguments: list[str] | None = None) -> None:
    """Measure, print the table and the ratios, write the JSON."""
    names = tuple(axes(CASES["text"]))
    options = parser("Time and memory of ours against the size of the work.")
    options.add_argument("--axes", nargs="+", choices=names, default=list(names))
    options.add_argument("--repeats", type=int, default=1, help="of every point; the table shows medians")
    chosen = options.parse_args(arguments)
    case = replace(CASES["text"], dtype=chosen.dtype)
    case = small(case) if chosen.scale == "small" else case

    points: dict[str, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        runner = Runner(Path(folder), chosen.device, chosen.threads)
        for axis in chosen.axes:
            points[axis] = []
            for value, at in axes(case)[axis].items():
                found = medians([runner.run("ours", at) for _ in range(chosen.repeats)])
                points[axis].append({"value": value, "case": asdict(at), **found, "tokens": rollout_tokens(at)})
                print(f"{axis} {value}", file=sys.stderr)

    show(points)
    ratios = compare(points)
    for name, ratio in ratios.items():
        print(f"{name}: {ratio:.2f}")
    write_json(
        chosen.json,
        {"device": chosen.device, "threads": chosen.threads, "scale": chosen.scale, "points": points, "ratios": ratios},
    )


def compare(points: dict[str, list[dict[str, Any]]]) -> dict[str, float]:
    """Compute ratios: time of G 16 to G 8, by phase and together, memory of the largest vocabulary to the smallest."""
    ratios = {}
    if "group size" in points:
        at = {point["value"]: point["seconds"] for point in points["group size"]}
        for name, phases in (("Phase I", ["fwm"]), ("Phase II", ["idm"]), ("both phases", ["fwm", "idm"])):
            less, more = (sum(at[size][phase]["step"] for phase in phases) for size in (8, 16))
            ratios[f"time of G 16 / G 8, {name}"] = more / less
    if "vocabulary" in points:
        first, last = points["vocabulary"][0], points["vocabulary"][-1]
        ratios[f"memory of vocabulary {last['value']:,} / {first['value']:,}"] = last["peak"] / first["peak"]
    return ratios


def show(points: dict[str, list[dict[str, Any]]]) -> None:
    """Lay out the table: seconds and rollout tokens per second of both phases, and the peak above the model."""
    table = Table(title="A step of ours")
    for column in ("axis", "value", "Phase I s", "tokens/s", "Phase II s", "tokens/s", "peak MiB"):
        table.add_column(column, justify="left" if column == "axis" else "right")
    for axis, found in points.items():
        for point in found:
            cells = []
            for phase in ("fwm", "idm"):
                seconds = point["seconds"][phase]["step"]
                cells += [f"{seconds:.2f}", f"{point['tokens'][phase] / seconds:.1f}"]
            last = point is found[-1]
            table.add_row(axis, f"{point['value']:,}", *cells, f"{point['peak'] / MIB:.0f}", end_section=last)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
