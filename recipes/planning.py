"""Success of planning in MiniGrid: goals reached in the true simulator by plans made in the FWM.

    python -m recipes.planning runs/quickstart --models SFT=checkpoints/epoch=23.ckpt SWIRL=checkpoints/last.ckpt

Give the run of every seed; each plans for goals in frames of its own test split. ``--seeds`` takes several sets of
goals from each run, without a frame in common, and draws the searches anew for each. The true simulator as the model is
the upper bound, and a random policy the lower one. Below are the paired differences of each model to the first one,
with 95 % intervals by Student's t over the runs; of one run, over its goals.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import get_args

import numpy as np

from recipes.scores import interval
from swirl_lightning.benchmarks.minigrid.goals import KINDS, MiniGridGoal, goals_in
from swirl_lightning.console.options import subcommand_parser
from swirl_lightning.console.run import run_command
from swirl_lightning.engine.ranges import check_ranges
from swirl_lightning.files.writing import whole_file
from swirl_lightning.transition import State, Transition
from swirl_lightning.use.planning import Dynamics, Episode, FWMDynamics, PlanConfig, Search, TrueDynamics, pursue
from swirl_lightning.use.runs import Run

RANDOM, TRUE = "random policy", "true simulator"
_NEAREST = 3
"""Fewest actions to a goal: nearer ones are reached by chance."""

Task = tuple[State, MiniGridGoal]

Outcomes = list[tuple[str, int, Episode]]
"""The kind of each goal, its seed and its episode."""

Results = dict[str, list[Outcomes]]
"""Of each row of the table and each run."""


def draw_goals(rows: Sequence[Transition], count: int, seeds: Sequence[int]) -> list[list[Task]]:
    """Draw ``count`` goals of each kind for each seed, at most one in a frame.

    Raises:
        ValueError: there are not as many.
    """
    random = np.random.default_rng(seeds[0])
    total = count * len(seeds)
    found: dict[str, list[Task]] = {kind: [] for kind in KINDS}
    for index in random.permutation(len(rows)):
        frame = rows[int(index)].before
        goals = [g for g in goals_in(frame) if g.distance(frame) >= _NEAREST and len(found[g.kind]) < total]
        if goals:
            goal = goals[int(random.integers(len(goals)))]
            found[goal.kind].append((frame, goal))
    if short := {kind: len(goals) for kind, goals in found.items() if len(goals) < total}:
        raise ValueError(
            f"the {len(rows)} frames of the test split have too few goals: {short}, not {total} of each kind; "
            "set --goals or --seeds lower"
        )
    return [[task for goals in found.values() for task in goals[n :: len(seeds)]] for n in range(len(seeds))]


def find(run: Path, models: dict[str, str]) -> dict[str, Run]:
    """Find the checkpoints of a run by the models' names.

    Raises:
        FileNotFoundError: one is missing.
    """
    Run.find(run)  # whose message is of the whole run
    return {name: Run.find(run / path) for name, path in models.items()}


def measure(
    run: Path,
    models: dict[str, str],
    searches: Sequence[Search],
    count: int,
    seeds: Sequence[int],
    width: int,
    depth: int,
    max_steps: int,
) -> dict[str, Outcomes]:
    """Plan for the goals of one run, ``count`` of each kind and seed, with every model and search.

    Raises:
        FileNotFoundError: a checkpoint is missing.
        ValueError: the run has no simulator, or too few goals.
    """
    chosen = find(run, models)
    data = next(iter(chosen.values())).data()
    world = data.simulator()
    if world is None:
        raise ValueError(f"{run} is a run of {type(data).__name__}, which has no simulator: give runs in MiniGrid")
    data.check()
    tasks = draw_goals(data.split("test"), count, seeds)
    found: dict[str, Outcomes] = {}

    def go(name: str, dynamics: Dynamics, method: Search, width: int, depth: int) -> None:
        began, asked = time.perf_counter(), dynamics.asked
        found[name] = []
        for seed, own in zip(seeds, tasks, strict=True):
            states, goals = zip(*own, strict=True)
            episodes = pursue(dynamics, world, states, goals, PlanConfig(method, width, depth, seed), max_steps)
            found[name] += [(goal.kind, seed, episode) for goal, episode in zip(goals, episodes, strict=True)]
        spent = time.perf_counter() - began
        print(f"{run}, {name}: {spent:.0f} s, {dynamics.asked - asked} new predictions", flush=True)

    go(RANDOM, TrueDynamics(world), "shooting", 1, 1)
    for name in (*chosen, TRUE):
        dynamics: Dynamics = TrueDynamics(world)
        if name != TRUE:
            dynamics = FWMDynamics(chosen[name].load(chosen[name].build()))
        for method in searches:
            go(f"{name}, {method}", dynamics, method, width, depth)
    return found


def table(results: Results, differences: Sequence[tuple[str, str]] = ()) -> list[str]:
    """Success in per cent, as Markdown.

    Args:
        results: what became of the goals.
        differences: rows whose paired difference is a row of its own, one minus the other, with its interval.
    """
    columns = ["model and search", "all goals", "by seed", *KINDS, "steps"]
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    scores = {
        name: [[(kind, seed, float(episode.reached)) for kind, seed, episode in tasks] for tasks in runs]
        for name, runs in results.items()
    }
    for name, runs in results.items():
        steps = [len(episode.actions) for _, _, episode in chain(*runs) if episode.reached]
        lines.append(f"| {name} | {_cells(scores[name])} | {np.mean(steps) if steps else float('nan'):.1f} |")
    for one, other in differences:
        paired = [
            [(kind, seed, a - b) for (kind, seed, a), (_, _, b) in zip(*runs, strict=True)]
            for runs in zip(scores[one], scores[other], strict=True)
        ]
        lines.append(f"| {one} − {other} | {_cells(paired, bounds=True)} | |")
    return lines


def _cells(runs: list[list[tuple[str, int, float]]], bounds: bool = False) -> str:
    """Means over all goals and each kind, with their intervals if asked for, and the means of each seed."""
    cells = []
    for kinds in (KINDS, *((kind,) for kind in KINDS)):
        found = interval([np.array([score for kind, _, score in tasks if kind in kinds]) for tasks in runs])
        mean, low, high = (100 * value for value in found)
        cells.append(f"{mean:.0f}" + (f" [{low:.0f}, {high:.0f}]" if bounds else ""))
    by_seed: dict[int, list[float]] = {}
    for _, seed, score in chain(*runs):
        by_seed.setdefault(seed, []).append(score)
    return " | ".join([cells[0], ", ".join(f"{100 * np.mean(s):.0f}" for s in by_seed.values()), *cells[1:]])


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = subcommand_parser(
        "planning",
        "RUN [RUN ...]",
        "Success of planning in MiniGrid: goals reached in the true simulator by plans\n"
        "made in the FWM, between a random policy and plans made in the true simulator.",
        "python -m recipes.planning runs/quickstart --seeds 3 --goals 12 \\\n"
        "      --models SFT=checkpoints/epoch=23.ckpt SWIRL=checkpoints/last.ckpt",
        program="python -m recipes.{}",
    )
    add = parser.add_argument
    add("runs", type=Path, nargs="+", metavar="RUN", help="a run's folder; of each training seed one")
    add(
        "--models",
        nargs="+",
        default=["SWIRL=checkpoints/last.ckpt"],
        metavar="NAME=PATH",
        help="checkpoints in the folder of each run (SWIRL=checkpoints/last.ckpt)",
    )
    known = get_args(Search)
    add("--searches", nargs="+", choices=known, default=list(known), metavar="S", help=f"among {' and '.join(known)}")
    add("--goals", type=int, default=20, metavar="N", help="of each kind, run and seed (20)")
    add("--seeds", type=int, default=1, metavar="N", help="sets of goals of each run (1)")
    add("--width", type=int, default=16, metavar="N", help="beams, or sequences of a plan (16)")
    add("--depth", type=int, default=10, metavar="N", help="most actions of a plan (10)")
    add("--max_steps", type=int, default=20, metavar="N", help="after which a goal is given up (20)")
    add("--json", type=Path, metavar="FILE", help="write each goal's episode here")
    args = parser.parse_args(arguments)
    if wrong := [text for text in args.models if not all(text.partition("="))]:
        parser.error(f"--models takes NAME=PATH, got {wrong[0]!r}")
    if args.json and (args.json.is_dir() or not args.json.absolute().parent.is_dir()):
        parser.error(f"--json takes a file in a folder that is there, got {args.json}")
    check_ranges("planning", vars(args), goals="whole [1, inf)", seeds="whole [1, inf)", max_steps="whole [1, inf)")
    PlanConfig(args.searches[0], args.width, args.depth)  # refuses what it does not take before anything loads
    models = dict(text.split("=", 1) for text in args.models)
    for run in args.runs:  # all of them, before the first takes its minutes
        find(run, models)
    results: Results = {}
    for n, run in enumerate(args.runs):
        seeds = range(n * args.seeds, (n + 1) * args.seeds)
        found = measure(run, models, args.searches, args.goals, seeds, args.width, args.depth, args.max_steps)
        for name, tasks in found.items():
            results.setdefault(name, []).append(tasks)
        if args.json:
            write(results, args.json)
    first, *others = models
    differences = [(f"{name}, {method}", f"{first}, {method}") for name in others for method in args.searches]
    print("\n".join(table(results, differences)), flush=True)


def write(results: Results, path: Path) -> None:
    """Write the episode of each goal as JSON."""
    episodes = {
        name: [
            [
                {"kind": kind, "seed": seed, "reached": e.reached, "plans": e.plans, "actions": e.actions}
                for kind, seed, e in tasks
            ]
            for tasks in runs
        ]
        for name, runs in results.items()
    }
    with whole_file(path) as file:
        file.write(json.dumps(episodes, indent=1).encode())


if __name__ == "__main__":
    run_command(main)
