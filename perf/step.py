"""One Phase I and one Phase II step: ours, the plain path and TRL, side by side.

python -m perf.step --case text --repeats 3 --threads 2 --json runs/perf/text.json
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from perf.common import CASES, Case, small
from perf.floor import Floor, measure
from perf.runs import MIB, PHASES, Runner, medians, parser, rollout_tokens, write_json

METHODS = ("ours", "plain", "trl")
PARTS = ("latent action", "sample", "reward", "reference", "policy update")


def main(arguments: list[str] | None = None) -> None:
    """Measure, print the table, write the JSON."""
    options = parser("Time and memory of one Phase I and one Phase II step.")
    options.add_argument("--case", choices=tuple(CASES), default="text")
    options.add_argument("--repeats", type=int, default=3, help="interleaved; the table shows medians")
    options.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    options.add_argument("--profile", action="store_true", help="also list the operations that took the time (slower)")
    chosen = options.parse_args(arguments)
    case = replace(CASES[chosen.case], dtype=chosen.dtype)
    case = small(case) if chosen.scale == "small" else case
    methods = available(chosen.methods, case)

    with tempfile.TemporaryDirectory() as folder:
        runner = Runner(Path(folder), chosen.device, chosen.threads)
        rates = measure(chosen.device, case.dtype, chosen.threads)
        runs: dict[str, list[dict[str, Any]]] = {method: [] for method in methods}
        for repeat in range(chosen.repeats):
            for method in methods:
                runs[method].append(runner.run(method, case, chosen.profile))
                print(f"{method} {repeat + 1}/{chosen.repeats}", file=sys.stderr)

    floor = Floor(case, rates).seconds()
    rows = [row for method in methods for row in summary(case, method, medians(runs[method]), floor)]
    show(chosen.case, rows)
    for method in methods if chosen.profile else ():
        show_operations(method, runs[method][-1]["operations"])
    write_json(
        chosen.json,
        {
            "case": {"name": chosen.case, "scale": chosen.scale, **asdict(case)},
            "device": chosen.device,
            "threads": chosen.threads,
            "rates": rates._asdict(),
            "floor": floor,
            "rows": rows,
            "runs": runs,
        },
    )


def available(methods: list[str], case: Case) -> list[str]:
    """Return the methods that can run; the others are named with the cure."""
    kept = list(methods)
    if "trl" in kept and case.codes:
        kept.remove("trl")
        print("trl is left out: it generates text only", file=sys.stderr)
    elif "trl" in kept and find_spec("trl") is None:
        kept.remove("trl")
        print("trl is left out: it is not installed; pip install -c constraints.txt -e '.[perf]'", file=sys.stderr)
    return kept


def summary(case: Case, method: str, found: dict[str, Any], floor: dict[str, dict[str, float]]) -> list[dict[str, Any]]:
    """Make a row per phase and one for both: seconds by part, tokens per second, peak and share of the floor."""
    tokens, rows = rollout_tokens(case), []
    for name, phases in [*((PHASES[p], [p]) for p in PHASES), ("both", list(PHASES))]:
        parts = {part: sum(found["seconds"][p].get(part, 0.0) for p in phases) for part in (*PARTS, "step")}
        least = sum(floor[p]["step"] for p in phases)
        rows.append(
            {
                "method": method,
                "phase": name,
                "seconds": parts,
                "tokens_per_second": sum(tokens[p] for p in phases) / parts["step"],
                "peak_bytes": found["peak"],
                "floor_seconds": least,
                "floor_share": least / parts["step"],
            }
        )
    return rows


def show(case: str, rows: list[dict[str, Any]]) -> None:
    """Lay out the table."""
    ours = {row["phase"]: row["seconds"]["step"] for row in rows if row["method"] == "ours"}
    table = Table(title=f"One step, case {case}: medians in seconds", show_header=True)
    for column in ("method", "phase", "step s", *PARTS, "tokens/s", "peak MiB", "floor share", "ours faster"):
        table.add_column(column, justify="left" if column in ("method", "phase") else "right")
    for row in rows:
        seconds = row["seconds"]
        table.add_row(
            row["method"],
            row["phase"],
            f"{seconds['step']:.2f}",
            *(f"{seconds[part]:.2f}" for part in PARTS),
            f"{row['tokens_per_second']:.1f}",
            f"{row['peak_bytes'] / MIB:.0f}",
            f"{row['floor_share']:.1%}",
            f"{seconds['step'] / ours[row['phase']]:.2f}x" if ours else "",
            end_section=row["phase"] == "both",
        )
    Console(width=160).print(table)


def show_operations(method: str, operations: dict[str, list[dict[str, Any]]]) -> None:
    """Print the operations of the last repeat."""
    for phase, found in operations.items():
        table = Table("operation", "self time", "seconds", "calls", title=f"{method}, {PHASES[phase]}")
        for each in found:
            table.add_row(each["operation"], f"{each['share']:.1%}", f"{each['seconds']:.2f}", str(each["calls"]))
        Console(width=160).print(table)


if __name__ == "__main__":
    main()
