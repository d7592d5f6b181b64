"""Rows of a table that share their start, trained over seeds, tested, and compared pair by pair.

    python -m recipes.study recipes/studies/minigrid_video.yaml --seeds 0 1 2

A study names a configuration, what differs between its rows, and which row each one goes on from. Each row of each
seed is one run of ``swirl fit`` and one of ``swirl test``, in ``<out>/seed<n>/<row>``; finished ones are not repeated,
and an interrupted one goes on from its last checkpoint. The table has means over seeds with 95 % intervals by a
bootstrap over seeds and transitions, paired for differences; ``curves.png`` beside it has the same as an image, and the
rewards over the optimiser steps.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from swirl_lightning.callbacks.row_scores import read
from swirl_lightning.results import curves
from swirl_lightning.yaml_files import load

RESAMPLES = 4000


@dataclass(frozen=True)
class Row:
    """One row of the table.

    Attributes:
        start: the row whose last checkpoint it goes on from; None starts from the base.
        options: command-line options beyond the study's, by their dotted names.
        trains: False tests the start's checkpoint under these options.
    """

    start: str | None
    options: dict[str, Any]
    trains: bool = True


@dataclass(frozen=True)
class Study:
    """What is compared.

    Attributes:
        config: configuration that all rows share.
        seeded: options that get a seed, and what is added to it.
        options: options of every row.
        rows: by name; a row comes after the one that it starts from.
    """

    config: str
    seeded: dict[str, int]
    options: dict[str, Any]
    rows: dict[str, Row]

    @classmethod
    def load(cls, path: Path) -> Study:
        """Read a study file.

        Raises:
            ValueError: a row starts from one that does not stand before it.
        """
        given = load(path.read_text())
        rows: dict[str, Row] = {}
        for name, row in given["rows"].items():
            start = row.get("start")
            if start is not None and start not in rows:
                raise ValueError(f"{path}: row {name!r} starts from {start!r}, which does not stand before it")
            rows[name] = Row(start, row.get("options", {}), row.get("train", True))
        return cls(given["config"], given.get("seeded", {}), given.get("options", {}), rows)

    def arguments(self, name: str, seed: int, folder: Path) -> list[str]:
        """Command-line arguments of a row's runs, after the subcommand."""
        seeds = {option: base + seed for option, base in self.seeded.items()}
        options = {**self.options, **self.rows[name].options, **seeds, "trainer.default_root_dir": str(folder)}
        return ["-c", self.config, *(f"--{option}={written(value)}" for option, value in options.items())]


def written(value: Any) -> str:
    """An option's value as the command line takes it: classes bare, everything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value)


# ---- running -------------------------------------------------------------------------------------
def place(out: Path, seed: int, name: str) -> Path:
    """Folder of a row's runs."""
    return out / f"seed{seed}" / name.replace(" ", "_").replace(",", "")


def swirl(folder: Path, command: str, arguments: Sequence[str]) -> None:
    """One run of the command line, on one thread; its output goes to a log file beside the run.

    Raises:
        RuntimeError: it failed.
    """
    line = [sys.executable, "-m", "swirl_lightning", command, *arguments]
    with (folder / f"{command}.log").open("a") as log:
        done = subprocess.run(line, stdout=log, stderr=subprocess.STDOUT, env={**os.environ, "OMP_NUM_THREADS": "1"})
    if done.returncode:
        raise RuntimeError(f"swirl {command} failed: see {folder / f'{command}.log'}")


def run(study: Study, name: str, seed: int, out: Path) -> None:
    """Train and test one row of one seed, as far as that is not done."""
    folder, row = place(out, seed, name), study.rows[name]
    folder.mkdir(parents=True, exist_ok=True)
    own, begin = last(folder), last(place(out, seed, row.start)) if row.start else None
    arguments = [*study.arguments(name, seed, folder), "--trainer.enable_progress_bar=false"]
    if row.trains and not (folder / "fit.done").exists():
        resumed = own if own.exists() else begin
        swirl(folder, "fit", [*arguments, *([f"--ckpt_path={resumed}"] if resumed else [])])
        (folder / "fit.done").touch()
    if not read(folder):
        scores = "--trainer.callbacks+=swirl_lightning.callbacks.RowScores"
        swirl(folder, "test", [*arguments, scores, f"--ckpt_path={own if row.trains else begin}", "--verbose=false"])


def last(folder: Path) -> Path:
    """The last checkpoint of a run."""
    return folder / "checkpoints" / "last.ckpt"


def run_all(study: Study, seeds: Sequence[int], names: Sequence[str], out: Path, jobs: int) -> None:
    """Every row of every seed, ``jobs`` at a time, seed by seed; a row waits for the one it starts from.

    Raises:
        RuntimeError: a run failed; what was running has been finished.
    """
    left = [(seed, name) for seed in seeds for name in names]
    done: set[tuple[int, str]] = set()
    running: dict[Future[None], tuple[int, str]] = {}
    with ThreadPoolExecutor(jobs) as pool:
        while left or running:
            for job in [j for j in left if study.rows[j[1]].start is None or (j[0], study.rows[j[1]].start) in done]:
                if len(running) < jobs:
                    left.remove(job)
                    running[pool.submit(run, study, job[1], job[0], out)] = job
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                job = running.pop(future)
                future.result()
                done.add(job)
                print(f"seed {job[0]}: {job[1]}", flush=True)


# ---- statistics ----------------------------------------------------------------------------------
Scores = Sequence[NDArray[np.float64]]
"""For each seed, a score of each transition."""


def interval(scores: Scores, share: float = 0.95, seed: int = 0) -> tuple[float, float, float]:
    """Mean over seeds of the means over transitions, and the ends of its percentile interval.

    A bootstrap in two stages: seeds are drawn with replacement, then transitions within each drawn seed. One seed
    is resampled over its transitions alone.
    """
    random = np.random.default_rng(seed)
    drawn = np.empty((RESAMPLES, len(scores)))
    for n, values in enumerate(scores):  # a resampled mean of each seed, for every resample
        counts = random.multinomial(len(values), np.full(len(values), 1 / len(values)), RESAMPLES)
        drawn[:, n] = counts @ values / len(values)
    chosen = random.integers(len(scores), size=(RESAMPLES, len(scores)))
    # a seed drawn twice has two resamples of its own: shuffle each seed's resamples between the draws
    means = np.mean([random.permutation(drawn)[np.arange(RESAMPLES), column] for column in chosen.T], axis=0)
    low, high = np.quantile(means, [(1 - share) / 2, (1 + share) / 2])
    return float(np.mean([values.mean() for values in scores])), float(low), float(high)


def scores_of(out: Path, seeds: Sequence[int], name: str, metric: str) -> dict[int, dict[str, float]]:
    """``{seed: {id: score}}`` of a row, as far as it has been tested."""
    found = {seed: read(place(out, seed, name)) for seed in seeds}
    return {
        seed: {key: row[metric] for key, row in rows.items() if metric in row} for seed, rows in found.items() if rows
    }


def difference(one: Mapping[int, Mapping[str, float]], other: Mapping[int, Mapping[str, float]]) -> Scores:
    """Paired differences, seed by seed, of the seeds that both rows have.

    Raises:
        ValueError: the rows of a seed were tested on other transitions.
    """
    pairs = []
    for seed in [seed for seed in one if seed in other]:
        if one[seed].keys() != other[seed].keys():
            raise ValueError(f"seed {seed}: the two rows were tested on different transitions")
        pairs.append(np.array([one[seed][key] - other[seed][key] for key in one[seed]]))
    return pairs


def tables(study: Study, seeds: Sequence[int], out: Path, metrics: Sequence[str], against: str) -> dict[str, Any]:
    """Means of every row, and what ``against`` is above each of the others: ``{row: {metric: {...}}}``."""
    found: dict[str, Any] = {}
    for name in study.rows:
        found[name] = {}
        for metric in metrics:
            own, best = (scores_of(out, seeds, row, metric) for row in (name, against))
            if not own:
                continue
            values = interval([np.array(list(rows.values())) for rows in own.values()])
            paired = difference(best, own) if name != against else []
            found[name][metric] = {
                "seeds": sorted(own),
                "mean": values,
                **({"difference": interval(paired), "paired_seeds": len(paired)} if paired else {}),
            }
    return found


def shown(found: Mapping[str, Any], metrics: Sequence[str], against: str) -> Table:
    """The tables for the eye, in per cent."""
    view = Table("", "seeds", *(f"{metric}\n{against} less it" for metric in metrics))
    for name, row in found.items():
        if not row:
            continue
        cells = []
        for metric in metrics:
            value = row.get(metric)
            text = "–" if value is None else _cell(value["mean"], sign="")
            cells.append(
                text + (f"\n{_cell(value['difference'], sign='+')}" if value and "difference" in value else "")
            )
        view.add_row(name, str(len(next(iter(row.values()))["seeds"])), *cells)
    return view


def panels(
    study: Study, seeds: Sequence[int], out: Path, found: Mapping[str, Any], metrics: Sequence[str]
) -> list[curves.Panel | curves.Intervals]:
    """Diagrams of the table's intervals, and of the rewards over the optimiser steps of all rows."""
    drawn: list[curves.Panel | curves.Intervals] = []
    for metric in metrics:
        if rows := {name: row[metric]["mean"] for name, row in found.items() if metric in row}:
            drawn.append(curves.Intervals(metric, rows))
    for tag in ("fwm/reward", "idm/reward"):
        lines: dict[str, list[curves.Curve]] = {}
        for name in study.rows:
            for folder in [place(out, seed, name) for seed in seeds]:
                if folder.exists() and (scalars := curves.scalars(folder, [tag])):
                    lines.setdefault(name, []).append(scalars[tag].smoothed(20))
        if lines:
            drawn.append(curves.Panel(f"{tag}, nats a token, mean of 20 steps", lines))
    return drawn


def _cell(values: Sequence[float], sign: str) -> str:
    mean, low, high = (100 * value for value in values)
    return f"{mean:{sign}.1f} [{low:{sign}.1f}, {high:{sign}.1f}]"


METRICS = ("fwm/sampled/exact_match", "fwm/greedy/exact_match", "fwm/sampled/preservation", "idm/sampled/exact_match")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rows", nargs="*", help="these alone; those they start from must be done or among them")
    parser.add_argument("--out", type=Path, help="default: runs/<name of the study>")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, one thread each")
    parser.add_argument("--against", default="recipe", help="the row that the others are compared with")
    parser.add_argument("--metrics", nargs="+", default=list(METRICS))
    parser.add_argument("--table", action="store_true", help="train nothing, show what is there")
    args = parser.parse_args()
    study, out = Study.load(args.study), args.out or Path("runs") / args.study.stem
    if unknown := {*(args.rows or []), args.against} - set(study.rows):
        parser.error(f"{args.study} has no rows {sorted(unknown)}; it has {list(study.rows)}")
    if not args.table:
        run_all(study, args.seeds, args.rows or list(study.rows), out, args.jobs)
    found = tables(study, args.seeds, out, args.metrics, args.against)
    out.mkdir(parents=True, exist_ok=True)
    (out / "table.json").write_text(json.dumps(found, indent=2))
    Console(width=160).print(shown(found, args.metrics, args.against))
    if curves.available() and (drawn := panels(study, args.seeds, out, found, args.metrics)):
        curves.draw(drawn, out / "curves.png")


if __name__ == "__main__":
    main()
