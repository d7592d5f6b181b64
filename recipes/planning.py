"""Success of planning in MiniGrid: goals reached in the true simulator by plans made in the FWM.

    python -m recipes.planning runs/quickstart --models SFT=checkpoints/epoch=23.ckpt SWIRL=checkpoints/last.ckpt

Give the run of every seed; each plans for goals in frames of its own test split. The true simulator as the model is
the upper bound, and a random policy the lower one. Intervals are of a bootstrap over runs and goals (95 %).
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import numpy as np

from recipes.study import interval
from swirl_lightning.benchmarks.minigrid.goals import KINDS, MiniGridGoal, goals_in
from swirl_lightning.console.run import run_command, silence_libraries
from swirl_lightning.transition import State, Transition
from swirl_lightning.use.planning import Dynamics, Episode, FWMDynamics, PlanConfig, Search, TrueDynamics, pursue
from swirl_lightning.use.runs import Run

RANDOM, TRUE = "random policy", "true simulator"
_NEAREST = 3
"""Fewest actions to a goal: nearer ones are reached by chance."""

Results = dict[str, list[list[tuple[str, Episode]]]]
"""For each row of the table and each run, the kind of each goal with its episode."""


def draw_goals(rows: Sequence[Transition], count: int, seed: int) -> list[tuple[State, MiniGridGoal]]:
    """Draw ``count`` goals of each kind, at most one in a frame.

    Raises:
        ValueError: there are not as many.
    """
    random = np.random.default_rng(seed)
    found: dict[str, list[tuple[State, MiniGridGoal]]] = {kind: [] for kind in KINDS}
    for index in random.permutation(len(rows)):
        frame = rows[int(index)].before
        goals = [g for g in goals_in(frame) if g.distance(frame) >= _NEAREST and len(found[g.kind]) < count]
        if goals:
            goal = goals[int(random.integers(len(goals)))]
            found[goal.kind].append((frame, goal))
    if short := {kind: len(goals) for kind, goals in found.items() if len(goals) < count}:
        raise ValueError(f"the {len(rows)} frames of the test split have too few goals: {short}; set --goals lower")
    return [task for goals in found.values() for task in goals]


def measure(
    run: Path,
    models: dict[str, str],
    searches: Sequence[Search],
    count: int,
    seed: int,
    width: int,
    depth: int,
    max_steps: int,
) -> dict[str, list[tuple[str, Episode]]]:
    """Plan for the goals of one run, with every model and search: ``{row: [(kind, episode)]}``.

    Raises:
        FileNotFoundError: a checkpoint is missing.
        ValueError: the run has no simulator, or too few goals.
    """
    chosen = {name: Run.find(run / path) for name, path in models.items()}
    data = next(iter(chosen.values())).data()
    world = data.simulator()
    if world is None:
        raise ValueError(f"{run} is a run of {type(data).__name__}, which has no simulator: give runs in MiniGrid")
    data.check()
    tasks = draw_goals(data.split("test"), count, seed)
    states, goals = [state for state, _ in tasks], [goal for _, goal in tasks]
    found: dict[str, list[tuple[str, Episode]]] = {}

    def go(name: str, dynamics: Dynamics, config: PlanConfig) -> None:
        began, asked = time.perf_counter(), dynamics.asked
        episodes = pursue(dynamics, world, states, goals, config, max_steps)
        spent = time.perf_counter() - began
        print(f"{run}, {name}: {spent:.0f} s, {dynamics.asked - asked} predictions", flush=True)
        found[name] = [(goal.kind, episode) for goal, episode in zip(goals, episodes, strict=True)]

    go(RANDOM, TrueDynamics(world), PlanConfig("shooting", 1, 1, seed))
    for name in (*chosen, TRUE):
        for method in searches:
            dynamics: Dynamics = TrueDynamics(world)
            if name != TRUE:
                dynamics = FWMDynamics(chosen[name].load(chosen[name].build()))
            go(f"{name}, {method}", dynamics, PlanConfig(method, width, depth, seed))
    return found


def table(results: Results) -> list[str]:
    """Success in per cent with its interval, as Markdown."""
    lines = ["| model and search | all goals | " + " | ".join(KINDS) + " | steps |", "|---" * (len(KINDS) + 3) + "|"]
    for name, runs in results.items():
        cells = []
        for kinds in (KINDS, *((kind,) for kind in KINDS)):
            scores = [np.array([float(e.reached) for kind, e in tasks if kind in kinds]) for tasks in runs]
            mean, low, high = (100 * value for value in interval(scores))
            cells.append(f"{mean:.0f} [{low:.0f}, {high:.0f}]")
        steps = [len(e.actions) for tasks in runs for _, e in tasks if e.reached]
        lines.append(f"| {name} | {' | '.join(cells)} | {np.mean(steps) if steps else float('nan'):.1f} |")
    return lines


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="folder of each seed")
    parser.add_argument(
        "--models",
        nargs="+",
        default=["SWIRL=checkpoints/last.ckpt"],
        metavar="NAME=PATH",
        help="checkpoints in the folder of each run",
    )
    known = get_args(Search)
    parser.add_argument("--searches", nargs="+", choices=known, default=list(known))
    parser.add_argument("--goals", type=int, default=20, help="of each kind and run")
    parser.add_argument("--width", type=int, default=16, help="beams, or sequences of a plan")
    parser.add_argument("--depth", type=int, default=10, help="most actions of a plan")
    parser.add_argument("--max_steps", type=int, default=20, help="after which a goal is given up")
    parser.add_argument("--json", type=Path, help="write each goal's episode here")
    args = parser.parse_args(arguments)
    if wrong := [text for text in args.models if not all(text.partition("="))]:
        parser.error(f"--models takes NAME=PATH, got {wrong[0]!r}")
    models = dict(text.split("=", 1) for text in args.models)
    results: Results = {}
    for seed, run in enumerate(args.runs):
        for name, tasks in measure(
            run, models, args.searches, args.goals, seed, args.width, args.depth, args.max_steps
        ).items():
            results.setdefault(name, []).append(tasks)
    print("\n".join(table(results)), flush=True)
    if args.json:
        written = {
            name: [
                [{"kind": k, "reached": e.reached, "plans": e.plans, "actions": e.actions} for k, e in tasks]
                for tasks in runs
            ]
            for name, runs in results.items()
        }
        args.json.write_text(json.dumps(written, indent=1))


if __name__ == "__main__":
    silence_libraries()
    run_command(main)
