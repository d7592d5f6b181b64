"""All there is to know of one GPU, unattended and in pieces: call it again until it says that nothing is left.

PYTHONPATH=tests python -m perf.gpu_day --out runs/gpu_day                                # goes on where it stopped
PYTHONPATH=tests python -m perf.gpu_day --out runs/rehearsal --device cpu --scale small   # a rehearsal

Each stage is a process of its own with a time limit, whose numbers are appended to ``results.jsonl`` as they are found,
so that a stage that dies leaves what it had; ``report.md`` is written after every stage. A stage that failed, or whose
time ran out, is tried once more when all others have run. No network is needed.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

MORE_IS_LEFT = 75  # EX_TEMPFAIL: call again
_REHEARSAL = 4  # times as long as on a GPU: CPUs at work take a minute to import it all
_SHORTEST = 20  # seconds; a stage that has less left is not begun

ROOT = Path(__file__).parents[1]
STAGES: dict[str, int] = {
    "environment": 60,
    "smoke": 240,
    "parity": 90,
    "graphs": 90,
    "decode": 240,
    "update": 200,
    "products": 90,
    "shipped": 240,
    "large": 240,
    "image": 300,
    "text": 300,
    "nccl": 90,
}
"""Stage -> seconds at most, in the order of worth; what each measures says its function in :mod:`perf.gpu_stages`."""


def main(arguments: list[str] | None = None) -> int:
    """Run the stages that are left, as far as the time goes; print the table."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    options.add_argument("--out", type=Path, default=Path("runs/gpu_day"), help="folder of results.jsonl and report.md")
    options.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    options.add_argument("--scale", choices=("full", "small"), default="full", help="small: a rehearsal")
    options.add_argument("--minutes", type=float, default=9.0, help="of this call")
    options.add_argument("--only", nargs="+", choices=tuple(STAGES), default=list(STAGES))
    chosen = options.parse_args(arguments)
    chosen.out.mkdir(parents=True, exist_ok=True)
    end, log = time.time() + 60 * chosen.minutes, chosen.out / "results.jsonl"
    for tries in (1, 2):
        for stage in chosen.only:
            # the second try of a stage has twice the time: it begins anew
            most = tries * STAGES[stage] * (_REHEARSAL if chosen.device == "cpu" else 1)
            if _is_left(log, stage, tries) and (limit := min(most, end - time.time() - 5)) >= _SHORTEST:
                began = time.time()
                status = _run(stage, chosen, limit)
                # cut short by the end of this call, and not by its own limit: that was no try
                cut = status == "out of time" and limit < most
                write(log, stage=stage, status="cut" if cut else status, seconds=round(time.time() - began, 1))
                (chosen.out / "report.md").write_text(report(read(log)))
    print(report(read(log)))
    return MORE_IS_LEFT if any(_is_left(log, stage, 2) for stage in chosen.only) else 0


def _is_left(log: Path, stage: str, tries: int) -> bool:
    ended = [row["status"] for row in read(log) if row["stage"] == stage and "status" in row and row["status"] != "cut"]
    return "done" not in ended and len(ended) < tries


def _run(stage: str, chosen: argparse.Namespace, limit: float) -> str:
    """Run a stage in a process of its own; its output goes to ``log.txt``."""
    command = [sys.executable, "-m", "perf.gpu_stages", stage, chosen.device, chosen.scale, str(chosen.out)]
    with open(chosen.out / "log.txt", "a") as output:
        try:
            code = _call(
                command,
                limit,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
                env=os.environ
                | {
                    "PYTORCH_ALLOC_CONF": "expandable_segments:True",
                    "HF_HUB_OFFLINE": "1",
                    # tests has tiny models of all families
                    "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT / "tests"), os.environ.get("PYTHONPATH")))),
                },
            )
        except subprocess.TimeoutExpired:
            return "out of time"
    return "done" if code == 0 else f"failed ({code})"


def _call(command: list[str], limit: float, **options: Any) -> int:
    """Run a command; when it ends, or its time does, or ours, so do all processes that it has started."""
    before = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    process = subprocess.Popen(command, start_new_session=True, **options)
    try:
        return process.wait(limit)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        signal.signal(signal.SIGTERM, before)


def read(log: Path) -> list[dict[str, Any]]:
    """Read all lines; one that a kill has cut is left out."""
    rows = []
    for line in log.read_text().splitlines() if log.exists() else []:
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows


def write(log: Path, **values: Any) -> None:
    """Append a line, and have it on the disk."""
    with open(log, "a") as file:
        file.write(json.dumps(values, default=str) + "\n")
        file.flush()
        os.fsync(file.fileno())


def report(rows: list[dict[str, Any]]) -> str:
    """Lay out the tables in Markdown: how the stages ended, and the latest value of all that each has found."""
    ends = {row["stage"]: row for row in rows if "status" in row}
    out = ["# One GPU", "", "| stage | ended | s |", "|---|---|---|"]
    out += [f"| {stage} | {row['status']} | {row['seconds']} |" for stage, row in ends.items()]
    for stage in dict.fromkeys(row["stage"] for row in rows):
        found = {row["what"]: row for row in rows if row["stage"] == stage and "what" in row}
        if found:
            out += ["", f"## {stage}", "", "| what | value | wanted |", "|---|---|---|"]
            out += [f"| {what} | {row['value']} | {row['wanted']} |" for what, row in found.items()]
    return "\n".join(out) + "\n"


if __name__ == "__main__":
    sys.exit(main())
