"""Seconds to sample states token by token, and from drafts: the state before, or one of random tokens.

python -m perf.drafts runs/quickstart --prompts 16 --repeats 3 --threads 2
"""

from __future__ import annotations

import argparse
import os
import random
import time
from dataclasses import replace
from pathlib import Path
from statistics import median

import torch
from rich.console import Console
from rich.table import Table

from perf.runs import write_json
from swirl_lightning.engine.completions import Completions
from swirl_lightning.engine.grammar import TokenIds
from swirl_lightning.engine.noise import uniforms
from swirl_lightning.module import SWIRL
from swirl_lightning.use import Run
from swirl_lightning.world_models import draft_of

WAYS = ("token by token", "from the state before", "from random drafts")


def main(arguments: list[str] | None = None) -> None:
    """Measure on the test split of a run's own data, in turns; print the table, write the JSON."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    options.add_argument("run", help="a run's folder, or a checkpoint")
    options.add_argument("--prompts", type=int, default=16, help="states and actions that are sampled from")
    options.add_argument("--groups", type=int, nargs="+", default=[1, 8, 16], help="rollouts of each prompt")
    options.add_argument("--repeats", type=int, default=3, help="the table shows medians")
    options.add_argument("--device", default="cpu")
    options.add_argument("--threads", type=int, default=os.cpu_count())
    options.add_argument("--json", type=Path, help="write all numbers here, too")
    chosen = options.parse_args(arguments)
    torch.set_num_threads(chosen.threads)
    run = Run.find(chosen.run)
    model, data = run.load(run.build(), chosen.device), run.data()
    rows = [data.split("test")[n] for n in range(chosen.prompts)]
    x = model.states.encode([row.before for row in rows], model.device)
    z = [model.backbone.encode_action(row.label) for row in rows]
    found = {group: compare(model, x, z, group, chosen.repeats) for group in chosen.groups}
    show(found)
    write_json(chosen.json, {"device": chosen.device, "threads": chosen.threads, "seconds": found})


def compare(model: SWIRL, x: list[TokenIds], z: list[TokenIds], group: int, repeats: int) -> dict[str, float]:
    """Median seconds of each way to draw the same states, run in turns after a round that is not measured.

    Raises:
        RuntimeError: fewer than 99 % of the states are the same; rounding alone differs.
    """
    fwm, models = model.models.fwm, model.models
    draw, grammar = random.Random(0), fwm.grammar
    prompts, keys = fwm.prompts(x, z), [str(n) for n in range(len(x))]
    noise = uniforms(keys, group, grammar.max_length)
    wrong = [draw.choices(grammar.content_ids, k=len(state)) for state in x]
    given = {WAYS[1]: x, WAYS[2]: wrong}
    drafts = {way: [draft_of(grammar, state) for state in states] for way, states in given.items()}
    config = models.engine.config
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    states: dict[str, list[TokenIds]] = {}
    for number in range(repeats + 1):
        for way in WAYS:
            models.engine.config = replace(config, speculative=way in drafts)
            began = time.perf_counter()
            drawn: Completions = fwm.sample_ids(prompts, noise, model.sampling, drafts.get(way, ()))
            states[way] = drawn.rows()  # waits for the device
            if number:
                seconds[way].append(time.perf_counter() - began)
    models.engine.config = config
    for way in drafts:
        same = sum(one == other for one, other in zip(states[way], states[WAYS[0]], strict=True)) / len(noise)
        if same < 0.99:
            raise RuntimeError(f"{way}: {same:.1%} of the states are those that are drawn token by token")
    return {way: median(values) for way, values in seconds.items()}


def show(found: dict[int, dict[str, float]]) -> None:
    """Print the table."""
    table = Table(
        "rollouts of a prompt", *(f"{way}, s" for way in WAYS), *(f"{way}: times as fast" for way in WAYS[1:])
    )
    for group, seconds in found.items():
        ratios = [f"{seconds[WAYS[0]] / seconds[way]:.2f}" for way in WAYS[1:]]
        table.add_row(str(group), *(f"{seconds[way]:.2f}" for way in WAYS), *ratios)
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
