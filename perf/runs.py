"""Measurements in processes of their own, and options of both scripts."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from perf.common import Case, build_base
from swirl_lightning.__main__ import HUGE_PAGES

PHASES = {"fwm": "Phase I", "idm": "Phase II"}
MIB = 2**20


def parser(description: str) -> argparse.ArgumentParser:
    """Make the parser of both scripts."""
    options = argparse.ArgumentParser(description=description)
    options.add_argument("--scale", choices=("full", "small"), default="full", help="small: a test, not a measurement")
    options.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    options.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of computation")
    options.add_argument("--threads", type=int, default=os.cpu_count(), help="CPU threads of each process")
    options.add_argument("--json", type=Path, help="write all numbers here, too")
    return options


@dataclass(frozen=True)
class Runner:
    """Runner of one process per measurement, all with the same threads and device.

    Attributes:
        folder: for bases, one per shape.
        device: ``cpu`` or ``cuda``.
        threads: of each process.
    """

    folder: Path
    device: str
    threads: int

    def run(self, method: str, case: Case, profile: bool = False) -> dict[str, Any]:
        """Run :func:`perf.worker.work` for a method in a process of its own, and return its result.

        Raises:
            RuntimeError: the process failed; the message ends with its last lines.
        """
        base = self.folder / f"{case.family}-{case.hidden}-{case.layers}-{case.vocabulary}"
        if not base.exists():
            build_base(case, base)
        job = {"method": method, "case": asdict(case), "folder": str(base), "profile": profile}
        pages = "1" if method == "ours" else "0"  # importing the package sets it, which the other methods do not
        visible = {"CUDA_VISIBLE_DEVICES": ""} if self.device == "cpu" else {}
        with tempfile.TemporaryDirectory() as room:
            given, result = Path(room, "job.json"), Path(room, "result.json")
            given.write_text(json.dumps(job | {"device": self.device, "threads": self.threads}))
            done = subprocess.run(
                [sys.executable, "-m", "perf.worker", str(given), str(result)],
                env=os.environ | {HUGE_PAGES: pages, "OMP_NUM_THREADS": str(self.threads)} | visible,
                capture_output=True,
                text=True,
                cwd=Path(__file__).parents[1],
            )
            if done.returncode:
                raise RuntimeError(f"{method} failed with exit code {done.returncode}:\n{done.stderr[-3000:]}")
            found: dict[str, Any] = json.loads(result.read_text())
            return found


def medians(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Compute medians over repeats: seconds by phase and part, and peak memory."""
    return {
        "peak": median(run["peak"] for run in runs),
        "seconds": {
            phase: {part: median(run["seconds"][phase][part] for run in runs) for part in parts}
            for phase, parts in runs[0]["seconds"].items()
        },
    }


def rollout_tokens(case: Case) -> dict[str, int]:
    """Count the tokens that the policy generates, by phase."""
    members = case.pairs * case.group_size
    return {"fwm": members * case.completion, "idm": members * case.action}


def write_json(path: Path | None, content: dict[str, Any]) -> None:
    """Write ``content`` if a path was given."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content, indent=1) + "\n")
