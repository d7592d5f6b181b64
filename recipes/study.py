"""Rows of a table that share their start, trained over seeds, tested, and compared pair by pair.

    python -m recipes.study recipes/studies/minigrid_video.yaml --seeds 0 1 2

A study names a configuration, what differs between its rows, and which row each one goes on from. Each row of each
seed is one run of ``swirl fit`` and one of ``swirl test``, in ``<out>/seed<n>/<row>``; finished ones are not repeated,
and an interrupted one goes on from its last checkpoint. The table has means over seeds with 95 % intervals by
Student's t over the seeds' means, paired for differences (of one seed, over its transitions); ``curves.png`` beside it
has the same as an image, and the rewards over the optimiser steps.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, NoReturn
from warnings import warn

import numpy as np
from rich.console import Console

from recipes import scores
from recipes.study_file import Study, folder_name
from swirl_lightning.console.options import OneLineParser
from swirl_lightning.console.run import run_command
from swirl_lightning.engine.ranges import check_ranges
from swirl_lightning.files.hashes import sha256
from swirl_lightning.files.reading import read_words
from swirl_lightning.files.safe_yaml import load
from swirl_lightning.files.writing import whole_file
from swirl_lightning.results import curves


# ---- running -------------------------------------------------------------------------------------
def place(out: Path, seed: int, name: str) -> Path:
    """Folder of a row's runs."""
    return out / f"seed{seed}" / folder_name(name)


def check_options(
    folder: Path, configs: Sequence[str], arguments: Sequence[str], trains: bool, begin: Path | None
) -> None:
    """Raise ValueError if a row's folder holds runs of other options or another start; what they are is kept there.

    Args:
        folder: of the row.
        configs: files that its runs read.
        arguments: of its runs.
        trains: whether it is trained, and not tested alone.
        begin: checkpoint that it starts from.
    """
    if begin and not begin.is_file():
        raise ValueError(f"{begin}, from which {folder} starts, has gone: remove the folder of that row, too")
    own, kept = _own(arguments), folder / "options.json"
    contents = [load(read_words(Path(path))) for path in configs]
    given = json.dumps(
        {"options": own, "configs": contents, "trains": trains, "start": begin and sha256(begin)}, indent=2, default=str
    )
    then = read_words(kept) if kept.is_file() else None
    if then != given and (then is not None or any(folder.rglob("*.ckpt")) or (folder / "fit.done").exists()):
        raise ValueError(
            f"{folder} holds runs of other options, or from another start than there is now ({kept}): remove it, or "
            "give another --out"
        )
    with whole_file(kept) as file:
        file.write(given.encode())


def _own(arguments: Sequence[str]) -> list[str]:
    """The arguments of a row's runs that do not depend on where it is trained."""
    return [argument for argument in arguments if not argument.startswith("--trainer.default_root_dir=")]


def swirl(folder: Path, command: str, arguments: Sequence[str]) -> None:
    """One run of the command line, on ``OMP_NUM_THREADS`` threads, 1 if unset; its output goes to a log file beside it.

    Raises:
        ChildProcessError: it failed.
    """
    line = [sys.executable, "-m", "swirl_lightning", command, *arguments]
    environment = {"OMP_NUM_THREADS": "1"} | os.environ
    with (folder / f"{command}.log").open("a") as log:
        with _STARTING:
            if _ENDED.is_set():
                raise ChildProcessError("the study has been ended")
            _RUNNING.add(process := subprocess.Popen(line, stdout=log, stderr=subprocess.STDOUT, env=environment))
        code = process.wait()
        _RUNNING.discard(process)
    if code:
        raise ChildProcessError(f"swirl {command} failed: see {folder / f'{command}.log'}")


_RUNNING: set[subprocess.Popen[bytes]] = set()
_STARTING = threading.RLock()  # a signal may come while this very thread holds it
_ENDED = threading.Event()


def end_on_sigterm() -> None:
    """Hand a SIGTERM on to the runs, each of which saves a checkpoint; they would go on without the study."""

    def end(number: int, frame: object) -> NoReturn:
        with _STARTING:
            _ENDED.set()
            for process in list(_RUNNING):
                process.terminate()
        sys.exit(128 + number)

    signal.signal(signal.SIGTERM, end)


def arguments_of(study: Study, name: str, seed: int, folder: Path) -> list[str]:
    """Arguments of a row's runs, after the subcommand."""
    return [*study.arguments(name, seed, folder), "--trainer.enable_progress_bar=false"]


def run(study: Study, name: str, seed: int, out: Path) -> None:
    """Train and test one row of one seed, as far as that is not done."""
    folder, row = place(out, seed, name), study.rows[name]
    folder.mkdir(parents=True, exist_ok=True)
    own, begin = last(folder), last(place(out, seed, row.start)) if row.start else None
    arguments = arguments_of(study, name, seed, folder)
    check_options(folder, study.configs, arguments, row.trains, begin)
    if row.trains and not (folder / "fit.done").exists():
        resumed = own if own.exists() else begin
        swirl(folder, "fit", [*arguments, *([f"--ckpt_path={resumed}"] if resumed else [])])
        (folder / "fit.done").touch()
    if not read(folder):
        scores = "--trainer.callbacks+=swirl_lightning.callbacks.RowScores"
        swirl(folder, "test", [*arguments, scores, f"--ckpt_path={own if row.trains else begin}", "--verbose=false"])


def read(folder: Path) -> dict[str, dict[str, float]]:
    """Scores of the transitions that a run was tested on; empty if it was not."""
    from swirl_lightning.callbacks.row_scores import read as rows_of  # here: a mistyped option need not wait for torch

    return rows_of(folder)


def last(folder: Path) -> Path:
    """The last checkpoint of a run."""
    return folder / "checkpoints" / "last.ckpt"


def run_all(study: Study, seeds: Sequence[int], names: Sequence[str], out: Path, jobs: int) -> list[str]:
    """Every row of every seed, ``jobs`` at a time, seed by seed; a row waits for the one it starts from.

    Returns:
        What has failed; rows that start from it have not been run, the others have.

    Raises:
        ValueError: a row's start is neither among the names nor done; nothing has been run.
    """
    left = list(dict.fromkeys((seed, name) for seed in seeds for name in names))
    starts = {(seed, start) for seed, name in left if (start := study.rows[name].start) is not None}
    done = {job for job in starts - set(left) if (place(out, *job) / "fit.done").exists()}
    if lacking := sorted(starts - set(left) - done):
        (seed, name), *_ = lacking
        raise ValueError(f"the row {name!r} of seed {seed}, which others start from, is not done: add it to --rows")
    running: dict[Future[None], tuple[int, str]] = {}
    failed: list[str] = []
    with ThreadPoolExecutor(jobs) as pool:
        while True:
            for job in [j for j in left if study.rows[j[1]].start is None or (j[0], study.rows[j[1]].start) in done]:
                if len(running) < jobs:
                    left.remove(job)
                    running[pool.submit(run, study, job[1], job[0], out)] = job
            if not running:  # what is left starts from what has failed
                return failed
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                job = running.pop(future)
                try:
                    future.result()
                except (ChildProcessError, ValueError, OSError) as error:
                    failed.append(f"seed {job[0]}, row {job[1]!r}: {error}")
                    print(failed[-1], file=sys.stderr, flush=True)
                    continue
                done.add(job)
                print(f"seed {job[0]}: {job[1]}", flush=True)


# ---- reading -------------------------------------------------------------------------------------
def tested(study: Study, seeds: Sequence[int], out: Path) -> scores.Found:
    """Scores of all rows, as far as they have been tested; warns of those that are left out."""
    found: scores.Found = {}
    for name in study.rows:
        found[name] = {}
        for seed in seeds:
            folder = place(out, seed, name)
            if rows := read(folder):
                if _of_other_options(folder, arguments_of(study, name, seed, folder)):
                    warn(f"{folder} holds runs of other options than the study has: its scores are left out")
                else:
                    found[name][seed] = rows
    return found


def _of_other_options(folder: Path, arguments: Sequence[str]) -> bool:
    kept = folder / "options.json"
    if not kept.is_file():
        return False
    try:
        return bool(json.loads(read_words(kept))["options"] != _own(arguments))
    except (ValueError, TypeError, KeyError):  # of an earlier version, or damaged
        return True


def by_iteration(study: Study, found: scores.Found, metric: str) -> curves.Panel | None:
    """A diagram of the means over transitions by iteration, of the seeds that have all of them; None without one."""
    lines: dict[str, list[curves.Curve]] = {}
    for line, names in study.iterations.items():
        rows = [scores.scores_of(found, name, metric) for name in names]
        places = np.arange(len(rows), dtype=float)
        for seed in sorted(set.intersection(*({seed for seed, own in row.items() if own} for row in rows))):
            means = np.array([np.mean(list(row[seed].values())) for row in rows])
            lines.setdefault(line, []).append(curves.Curve(places, means))
    count = max(map(len, study.iterations.values()), default=0)
    ticks = [str(n) for n in range(count)]
    return curves.Panel(f"{metric}, by iteration", lines, "iteration", ticks) if lines else None


def panels(
    study: Study,
    seeds: Sequence[int],
    out: Path,
    found: scores.Found,
    table: Mapping[str, Any],
    metrics: Sequence[str],
) -> list[curves.Panel | curves.Intervals]:
    """Diagrams of the table's intervals, of its rows by iteration, and of the rewards over the optimiser steps."""
    drawn: list[curves.Panel | curves.Intervals] = []
    for metric in metrics:
        if rows := {name: row[metric]["mean"] for name, row in table.items() if metric in row}:
            drawn.append(curves.Intervals(metric, rows))
        if iterated := by_iteration(study, found, metric):
            drawn.append(iterated)
    for tag in ("fwm/reward", "idm/reward"):
        lines: dict[str, list[curves.Curve]] = {}
        for name in study.rows:
            for folder in [place(out, seed, name) for seed in seeds]:
                rewards = curves.scalars(folder, [tag]).get(tag) if folder.exists() else None
                if rewards and np.ptp(rewards.values):  # switched-off rewards are one line at zero
                    lines.setdefault(name, []).append(rewards.smoothed(20))
        if lines:
            drawn.append(curves.Panel(f"{tag}, nats a token, mean of 20 steps", lines))
    return drawn


METRICS = (
    "fwm/sampled/exact_match",
    "fwm/greedy/exact_match",
    "fwm/sampled/effect_accuracy",
    "fwm/sampled/preservation",
    "fwm/sampled/rouge_l",
    "idm/sampled/exact_match",
)


def main() -> None:
    """Command line."""
    parser = OneLineParser(
        prog="python -m recipes.study", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("study", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rows", nargs="*", help="these alone; those they start from must be done or among them")
    parser.add_argument("--out", type=Path, help="default: runs/<name of the study>")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, each of one thread or OMP_NUM_THREADS")
    parser.add_argument("--against", default="recipe", help="the row that the others are compared with")
    parser.add_argument("--metrics", nargs="+", help=f"default: what there is of {', '.join(METRICS)}")
    parser.add_argument("--pack", type=Path, help="write the scores of the table to this .csv.gz file")
    parser.add_argument("--join", type=Path, nargs="+", default=[], help="packed scores of seeds trained elsewhere")
    parser.add_argument("--table", action="store_true", help="train nothing, show what is there")
    args = parser.parse_args()
    check_ranges("study", vars(args), jobs="whole [1, inf)")
    study, out = Study.load(args.study), args.out or Path("runs") / args.study.stem
    joined: scores.Found = {}
    failed: list[str] = []
    if unknown := {*(args.rows or []), args.against} - set(study.rows):
        parser.error(f"{args.study} has no rows {sorted(unknown)}; it has {list(study.rows)}")
    try:
        for path in args.join:
            scores.join(joined, scores.unpack(path), path)
    except ValueError as error:
        parser.error(str(error))
    if strange := set(joined) - set(study.rows):
        parser.error(f"--join brings rows that {args.study} does not have: {sorted(strange)}")
    if not args.table:
        names = args.rows or list(study.rows)
        if both := sorted({seed for name in names for seed in joined.get(name, {})} & set(args.seeds)):
            parser.error(f"--join has the seeds {both} already: leave them out of --seeds")
        failed = run_all(study, args.seeds, names, out, args.jobs)
    found = tested(study, args.seeds, out)
    try:
        scores.join(found, joined, "--join")
    except ValueError as error:
        parser.error(str(error))
    known = {metric for seeds in found.values() for rows in seeds.values() for row in rows.values() for metric in row}
    if unknown := set(args.metrics or ()) - known if known else set():
        parser.error(f"--metrics: the scores have no {sorted(unknown)}; they have {sorted(known)}")
    metrics = args.metrics or [metric for metric in METRICS if metric in known]
    if args.pack:
        scores.pack(found, metrics, args.pack)
    table = scores.tables(found, metrics, args.against, study.shared_test)
    with whole_file(out / "table.json") as file:
        file.write(json.dumps(table, indent=2).encode())
    Console(width=200).print(scores.shown(table, metrics, args.against))
    if curves.available() and (drawn := panels(study, args.seeds, out, found, table, metrics)):
        curves.draw(drawn, out / "curves.png")
    if failed:
        raise ChildProcessError(f"{len(failed)} rows failed: {'; '.join(failed)}")


if __name__ == "__main__":
    end_on_sigterm()
    run_command(main)
