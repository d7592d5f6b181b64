"""Pairs a second of `label`, and steps a second of `simulate`, in batches and in a plain loop of the same calls.

python -m perf.label runs/quickstart --pairs 96 --repeats 3 --threads 2
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from rich.console import Console
from rich.table import Table

from perf.runs import write_json
from swirl_lightning.module import SWIRL
from swirl_lightning.transition import Transition
from swirl_lightning.use import Run, label, simulate


def main(arguments: list[str] | None = None) -> None:
    """Measure both on the test split of a run's own data; print the table, write the JSON."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    options.add_argument("run", help="a run's folder, or a checkpoint")
    options.add_argument("--pairs", type=int, default=96, help="pairs to label")
    options.add_argument("--branches", type=int, default=16, help="rollouts")
    options.add_argument("--steps", type=int, default=4, help="steps of each rollout")
    options.add_argument("--repeats", type=int, default=3, help="the table shows medians")
    options.add_argument("--device", default="cpu")
    options.add_argument("--threads", type=int, default=os.cpu_count())
    options.add_argument(
        "--cpu_seconds", action="store_true", help="count the CPU time of this process: for a CPU that others use, too"
    )
    options.add_argument("--json", type=Path, help="write all numbers here, too")
    chosen = options.parse_args(arguments)
    torch.set_num_threads(chosen.threads)
    run = Run.find(chosen.run)
    model, data = run.load(run.build(), chosen.device), run.data()
    rows = data.split("test")
    pairs = [rows[n] for n in range(min(chosen.pairs, len(rows)))]
    clock = time.process_time if chosen.cpu_seconds else time.perf_counter
    steps = chosen.branches * chosen.steps
    found = {
        "label": compare(len(pairs), chosen.repeats, *labelling(model, pairs), clock),
        "simulate": compare(steps, chosen.repeats, *rollouts(model, pairs, chosen.branches, chosen.steps), clock),
    }
    show(found)
    write_json(chosen.json, {"device": chosen.device, "threads": chosen.threads, **found})


def labelling(model: SWIRL, pairs: list[Transition]) -> tuple[Callable[[], object], Callable[[], object]]:
    """Return both ways to label, states already tokens: they are the same work in both."""
    model.states.encode([state for pair in pairs for state in (pair.before, pair.observed)], model.device)
    return lambda: label(model, pairs), lambda: [label(model, [pair]) for pair in pairs]


def rollouts(
    model: SWIRL, pairs: list[Transition], branches: int, steps: int
) -> tuple[Callable[[], object], Callable[[], object]]:
    """Return both ways to roll out from the first pair, by its own action and those of the next ones."""
    start, actions = pairs[0].before, [pair.action or "" for pair in pairs[:steps]]
    return (
        lambda: simulate(model, start, actions, branches=branches),
        lambda: [simulate(model, start, actions, seed=seed) for seed in range(branches)],
    )


def compare(
    count: int,
    repeats: int,
    together: Callable[[], object],
    alone: Callable[[], object],
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """Compute units a second of both ways, run in turns after a first round that is not measured, and their ratio."""
    seconds: dict[str, list[float]] = {"together": [], "alone": []}
    for number in range(repeats + 1):
        for name, call in (("together", together), ("alone", alone)):
            began = clock()
            call()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if number:
                seconds[name].append(clock() - began)
    rates = {name: count / median(values) for name, values in seconds.items()}
    return {**rates, "ratio": rates["together"] / rates["alone"]}


def show(found: dict[str, dict[str, float]]) -> None:
    """Print the table."""
    table = Table("", "together, 1/s", "in a loop, 1/s", "times as fast")
    for name, unit in (("label", "pairs"), ("simulate", "steps")):
        row = found[name]
        table.add_row(f"{name} ({unit})", *(f"{row[key]:.1f}" for key in ("together", "alone", "ratio")))
    Console().print(table)


if __name__ == "__main__":
    main()
