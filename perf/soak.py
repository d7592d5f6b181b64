"""Kills runs in every part of theirs, resumes them, and compares what they end with to a run that was left alone.

python -m perf.soak --out runs/soak --minutes 10

Runs are tiny: one epoch of warm-up and one iteration, by the ``swirl`` command itself. Each is killed several times, by
SIGKILL or SIGTERM at a random moment of a random part, and goes on with ``--ckpt_path last``. In the end its weights,
optimiser, exported adapters and results must be those of the run left alone, bit by bit. Processes are forked from one
that has imported everything, so that an attempt costs seconds. The same command again goes on with an unfinished soak.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import shutil
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
import yaml
from rich.console import Console
from rich.table import Table

from perf.attempt import Attempt
from perf.common import build_base
from perf.parts import CASE
from swirl_lightning.cli import swirl_cli
from swirl_lightning.console.options import OneLineParser

PARTS = ("start", "warmup", "fwm", "idm", "validation", "checkpoint", "export", "results")
CASES: dict[str, dict[str, Any]] = {
    "accumulation 3": {},
    "num_iterations 2": {"grpo": {"num_iterations": 2}},
    "shared weights": {"shared_weights": True},
    "two ranks": {"grpo": {"num_iterations": 2}},
}
SIGNALS = (signal.SIGKILL, signal.SIGTERM)
MOST_KILLS = 6
"""Kills of one run before it is left to end."""
END_S = 300.0
"""Seconds in which all ranks must end after one was killed: far more than they need."""
START_S = 20.0
"""The same where ranks have not met yet: they would wait for one another, and whatever has started them kills them."""
WHOLE_S = 3600.0
"""Seconds in which a run ends that is left alone."""


def ranks_of(case: str) -> int:
    return 2 if case == "two ranks" else 1


def write_config(folder: Path, base: Path, case: str) -> Path:
    """Write the YAML of a run; its folder is ``folder/run``."""
    two = ranks_of(case) == 2
    saves = [
        {"filename": "{epoch}", "save_top_k": -1, "save_last": True, "enable_version_counter": False},
        {"save_top_k": 0, "save_last": True, "every_n_train_steps": 2, "enable_version_counter": False},
    ]
    callbacks = [{"class_path": f"perf.parts.{name}"} for name in ("Phases", "Export", "Table")]
    keeper = "lightning.pytorch.callbacks.ModelCheckpoint"
    model: dict[str, Any] = {
        "backbone": {"class_path": "perf.parts.Base", "init_args": {"folder": str(base)}},
        "templates": {"fwm": "{before} 3 3 {action}", "idm": "{before} 3 3 {after}"},
        "lora": {"r": 4, "dropout": 0.1},
        "optim": {name: {"lr": 1e-3, "warmup": 0} for name in ("warmup", "fwm", "idm")},
        **CASES[case],
    }
    model["grpo"] = {"group_size": 3, **model.get("grpo", {})}
    settings = {
        "seed_everything": 0,
        "trainer": {
            "accelerator": "cpu",
            "devices": ranks_of(case),
            "strategy": "ddp" if two else "auto",
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "accumulate_grad_batches": 3,
            "default_root_dir": str(folder / "run"),
            "plugins": [{"class_path": "perf.parts.Checkpoints"}],
            "callbacks": [*callbacks, *({"class_path": keeper, "init_args": save} for save in saves)],
        },
        "phase_switch": {"warmup_epochs": 1, "iterations": 1},
        "model": {"class_path": "swirl_lightning.SWIRL", "init_args": model},
        "data": {
            "class_path": "perf.parts.Triples",
            "init_args": {"batch_size": 1 if two else 2, "eval_batch_size": 1},
        },
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(settings, sort_keys=False))
    return path


# ---- runs ----------------------------------------------------------------------------------------
def leave_alone(path: Path, case: str) -> dict[str, float]:
    """Run without a kill; return the median seconds of each part."""
    attempt = Attempt(path, ranks_of(case), resume=False)
    if late := attempt.end(WHOLE_S):
        raise SystemExit(f"error: ranks {late} of the run left alone did not end, see {path.parent}")
    if set(attempt.codes.values()) != {0}:
        raise SystemExit(f"error: the run left alone ended with {attempt.codes}, see {path.parent / 'log.txt'}")
    lasted: dict[str, list[float]] = {part: [] for part in PARTS}
    for (part, began), (_, ended) in zip(attempt.times, attempt.times[1:], strict=False):
        lasted[part].append(ended - began)
    return {part: sorted(times)[len(times) // 2] for part, times in lasted.items() if times}


def kill_and_resume(
    path: Path, case: str, draw: random.Random, seconds: dict[str, float], met: Counter[tuple[str, int]]
) -> dict[str, Any]:
    """Run with kills until it ends; return them, and what went wrong.

    Args:
        path: of its configuration.
        case: one of `CASES`.
        draw: of the kills.
        seconds: that each part lasts.
        met: kills so far, by part and signal: those that are rare are drawn more often.
    """
    kills: list[dict[str, Any]] = []
    wrong: list[str] = []
    last = path.parent / "run" / "checkpoints" / "last.ckpt"
    while True:
        attempt = Attempt(path, ranks_of(case), resume=last.exists())
        if len(kills) < draw.randrange(2, MOST_KILLS + 1) and (hit := _strike(attempt, case, draw, seconds, met)):
            kills.append(hit)
            met[hit["part"], hit["signal"]] += 1
            allowed = {0, -hit["signal"]} | ({128 + signal.SIGTERM} if hit["signal"] == signal.SIGTERM else {1})
        else:
            hit, allowed = {}, {0}
        starting = bool(hit) and hit["part"] == "start"
        late = attempt.end(START_S if starting else END_S if hit else WHOLE_S)
        if starting:
            allowed |= {-signal.SIGKILL} if late else set()
        elif late:
            wrong.append(f"ranks {late} did not end after {hit or 'the last start'}")
        if not set(attempt.codes.values()) <= allowed:
            wrong.append(f"exit codes {attempt.codes} after {hit or 'the last start'}")
            return {"kills": kills, "wrong": wrong}
        if set(attempt.codes.values()) == {0}:
            if hit:  # it came when the run had ended, or too late to end it
                met[hit["part"], hit["signal"]] -= 1
                kills.pop()
            return {"kills": kills, "wrong": wrong}


def _strike(
    attempt: Attempt, case: str, draw: random.Random, seconds: dict[str, float], met: Counter[tuple[str, int]]
) -> dict[str, Any] | None:
    """Send a signal in a random part, if the run comes to it; return which, and where it met."""
    targets = [(part, number) for part in PARTS for number in SIGNALS]
    ((part, number),) = draw.choices(targets, [(1 + met[part, int(number)]) ** -2 for part, number in targets])
    times = draw.randrange(1, 12 if part in ("warmup", "fwm", "idm") else 3)
    while attempt.seen[part] < times:
        if not attempt.poll(0.5):
            return None
    attempt.poll(draw.uniform(0.0, seconds.get(part, 0.0)))
    ranks = list(range(ranks_of(case)))
    ranks = ranks if number == signal.SIGTERM and draw.random() < 0.5 else [draw.choice(ranks)]
    attempt.kill(number, ranks)
    return {"signal": int(number), "part": attempt.part, "ranks": ranks}


# ---- what is compared ----------------------------------------------------------------------------
def differences(folder: Path, alone: Path) -> list[str]:
    """Names of what differs between two finished runs, bit by bit, and of unfinished files."""
    found = [f"{p.name} is left" for p in folder.rglob(".*") if p.name.endswith((".partial", ".old"))]
    for name in ("last.ckpt", "epoch=0.ckpt", "epoch=1.ckpt", "epoch=2.ckpt"):
        one, other = (torch.load(at / "checkpoints" / name, weights_only=True) for at in (folder, alone))
        keys = ("state_dict", "optimizer_states", "lr_schedulers", "global_step")
        found += [f"{key} of {name}" for key in keys if not _equal(one[key], other[key])]
        # "epoch" is the next one where SIGTERM came after the last validation: what was trained is the same
        trained = [each["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"] for each in (one, other)]
        found += [f"epochs of {name}"] if trained[0] != trained[1] else []
    exported = {path.relative_to(alone) for path in (alone / "adapters").rglob("*") if path.is_file()}
    for file in sorted(exported):
        if not (folder / file).is_file() or (folder / file).read_bytes() != (alone / file).read_bytes():
            found.append(str(file))
    results = [json.loads((at / "results.json").read_text())["validation"] for at in (folder, alone)]
    return found + (["results.json"] if results[0] != results[1] else [])


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(_equal, a, b))
    return bool(a == b)


# ---- table ---------------------------------------------------------------------------------------
def counted(runs: list[dict[str, Any]]) -> Counter[tuple[str, int]]:
    """Count the kills by part and signal."""
    return Counter((kill["part"], kill["signal"]) for run in runs for kill in run["kills"])


def show(runs: list[dict[str, Any]]) -> None:
    """Print where kills met, and how many runs ended with the bits of the run left alone."""
    console = Console(width=100)
    kills = counted(runs)
    table = Table("part", "SIGKILL", "SIGTERM")
    for part in PARTS:
        table.add_row(part, *(str(kills[part, int(number)]) for number in SIGNALS))
    table.add_row("all", *(str(sum(n for (_, s), n in kills.items() if s == int(k))) for k in (9, 15)))
    console.print(table)
    table = Table("case", "runs", "kills", "same bits")
    for case in CASES:
        own = [run for run in runs if run["case"] == case]
        same = sum(not run["wrong"] for run in own)
        table.add_row(case, str(len(own)), str(sum(len(run["kills"]) for run in own)), f"{same} of {len(own)}")
    console.print(table)
    for run in runs:
        for words in run["wrong"]:
            console.print(f"{run['case']}, run {run['number']}: {words}", highlight=False)


def main() -> None:
    """Soak for so many minutes, or until so many kills are done."""
    parser = OneLineParser(
        prog="python -m perf.soak", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/soak"), help="folder of the runs and of soak.jsonl")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--kills", type=int, default=10**9, help="stop after so many, if that comes first")
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    until = time.monotonic() + 60 * options.minutes
    torch.set_num_threads(1)
    base, written = options.out / "base", options.out / "soak.jsonl"
    if not (base / "config.json").exists():
        build_base(CASE, base)
    sys.argv = ["swirl"]  # Lightning would warn of others
    # imports what a run imports
    swirl_cli(["-c", str(write_config(options.out / "import", base, options.cases[0]))], run=False)
    gc.freeze()  # or collections in the children would copy all memory
    seconds = {}
    for case in options.cases:
        folder = options.out / case.replace(" ", "-") / "alone"
        shutil.rmtree(folder, ignore_errors=True)
        seconds[case] = leave_alone(write_config(folder, base, case), case)
    runs = [json.loads(line) for line in written.read_text().splitlines()] if written.exists() else []
    while time.monotonic() < until and sum(len(run["kills"]) for run in runs) < options.kills:
        number = len(runs)
        case = options.cases[number % len(options.cases)]
        folder = options.out / case.replace(" ", "-") / str(number)
        shutil.rmtree(folder, ignore_errors=True)
        draw = random.Random(f"{options.seed} {number}")
        run = kill_and_resume(write_config(folder, base, case), case, draw, seconds[case], counted(runs))
        run["wrong"] += [] if run["wrong"] else differences(folder / "run", folder.parent / "alone" / "run")
        runs.append({"case": case, "number": number, **run})
        with open(written, "a") as file:
            file.write(json.dumps(runs[-1]) + "\n")
        if not run["wrong"]:
            shutil.rmtree(folder)
    show(runs)
    if any(run["wrong"] for run in runs):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
