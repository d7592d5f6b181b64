"""Transitions of gold paths, and off them, played in the ScienceWorld simulator and frozen as JSON lines.

    python -m swirl_lightning.prepare.scienceworld --out data/scienceworld

Each episode is a file of its own until all are there, so an interrupted run goes on where it stopped. The
simulator's worlds differ from one load to the next (1.2.3), so compare runs on the same file only. Its SHA-256 and
its settings are in files beside it.
"""

from __future__ import annotations

import json
import random
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Any

from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

from swirl_lightning.console.run import run_command
from swirl_lightning.data.reading import BrokenRecord, lines, parse_object, text_field
from swirl_lightning.engine.ranges import check_ranges
from swirl_lightning.files.hashes import sha256
from swirl_lightning.files.writing import whole_file
from swirl_lightning.prepare import command_parser

Episode = tuple[str, str, int]
"""Split, task, variation."""

_NOT_PLAYED = ("focus", "inventory", "look", "reset", "task", "wait", "wait1")
"""First words of actions that change nothing that is seen, or end the task."""

_TRIES = 5  # random actions for each step off the path: many change nothing


def generate(
    out: str,
    train: int = 4,
    dev: int = 1,
    test: int = 1,
    max_steps: int = 100,
    tasks: list[str] | None = None,
    seed: int = 0,
    off_path: int = 0,
) -> Path:
    """Write ``gold_transitions.jsonl``, its ``.sha256`` and a ``.json`` with settings and counts.

    Args:
        out: folder; episodes of an earlier run of the same simulator with the same ``max_steps`` and ``off_path`` are
            kept, with steps off the path those of the same ``seed``.
        train: episodes (variations) of each task from the simulator's training variations.
        dev: from its development variations.
        test: from its test variations.
        max_steps: steps of an episode; a longer gold path is cut there.
        tasks: names of tasks; null for all 30.
        seed: of the choice of variations, and of the steps off the path.
        off_path: random steps of each episode beside its gold path; see `stray`.

    Returns:
        The file of transitions.

    Raises:
        ImportError: the simulator is not installed.
        ValueError: an unknown task, a number out of its range, or an episode of an earlier run that is damaged.
    """
    counts = dict.fromkeys(("train", "dev", "test"), "whole [0, inf)")
    check_ranges("scienceworld", locals(), max_steps="whole [1, inf)", off_path="whole [0, 1000]", **counts)
    simulator = _simulator()
    try:
        off = f"-and-{off_path}-of-seed-{seed}" if off_path else ""
        folder = Path(out) / f"episodes-of-{max_steps}{off}-by-{version('scienceworld')}"
        folder.mkdir(parents=True, exist_ok=True)
        chosen = choose(simulator, {"train": train, "dev": dev, "test": test}, tasks, seed)
        with Progress(*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn()) as bar:
            for split, task, variation in bar.track(chosen, description="ScienceWorld episodes"):
                path = _path(folder, (split, task, variation))
                if not path.is_file():
                    rows = replay(simulator, task, variation, max_steps)
                    if off_path:
                        draw = random.Random(f"{seed}|{task}|{variation}|off")
                        rows = chain(rows, stray(simulator, task, variation, max_steps, off_path, draw))
                    _write(path, ({"task": task, "variation": variation, "split": split, **row} for row in rows))
    finally:
        simulator.close()
    settings = {"train": train, "dev": dev, "test": test, "max_steps": max_steps, "tasks": tasks, "seed": seed}
    if off_path:
        settings["off_path"] = off_path
    return freeze(Path(out), [_path(folder, episode) for episode in chosen], settings)


def choose(simulator: Any, counts: dict[str, int], tasks: list[str] | None, seed: int) -> list[Episode]:
    """Choose variations of each task at random from the simulator's own splits."""
    known = list(simulator.get_task_names())
    unknown = sorted(set(tasks or ()) - set(known))
    if unknown:
        raise ValueError(f"unknown ScienceWorld tasks {unknown}; choose from {known}")
    episodes: list[Episode] = []
    for task in tasks or known:
        simulator.load(task, 0, "", False)
        for split, count in counts.items():
            variations = sorted(getattr(simulator, f"get_variations_{split}")())
            draw = random.Random(f"{seed}|{task}|{split}")
            episodes += [(split, task, v) for v in sorted(draw.sample(variations, min(count, len(variations))))]
    return episodes


def replay(simulator: Any, task: str, variation: int, max_steps: int) -> Iterator[dict[str, Any]]:
    """Replay a gold path and return its steps.

    Goes to the simulator's server: ``env.step`` also lists every valid action, which is several times slower.
    """
    simulator.load(task, variation, "", True)
    state = _State(simulator.server)
    for step, action in enumerate(simulator.get_gold_action_sequence()[:max_steps]):
        yield {"step": step, **state.after(action)}


def stray(
    simulator: Any, task: str, variation: int, max_steps: int, steps: int, draw: random.Random
) -> Iterator[dict[str, Any]]:
    """Play a gold path up to a random step, then random actions that change what is seen; return the latter.

    A kind of action, its first word, is drawn from those that are valid, then an action of that kind.

    Args:
        simulator: as made by the package.
        task: name of the task.
        variation: of the task.
        max_steps: of the gold path.
        steps: off it, at most; actions that change nothing are not counted, and five times as many are tried at most.
        draw: of the choices.
    """
    simulator.load(task, variation, "", True)
    state, gold = _State(simulator.server), simulator.get_gold_action_sequence()[:max_steps]
    for action in gold[: draw.randrange(len(gold) + 1)]:
        state.after(action)
    number = 0
    for _ in range(_TRIES * steps):
        if number == steps:
            return
        kinds: dict[str, list[str]] = {}
        for action in simulator.get_valid_action_object_combinations():
            if (kind := action.split()[0]) not in _NOT_PLAYED:
                kinds.setdefault(kind, []).append(action)
        if not kinds:
            return
        row = state.after(draw.choice(sorted(kinds[draw.choice(sorted(kinds))])))
        if (row["look_before"], row["inv_before"]) != (row["look_after"], row["inv_after"]):
            # counted from a bound: gold paths of one variation differ in length from one load to the next
            yield {"step": max_steps + number, **row, "on_path": False}
            number += 1


class _State:
    """What is seen before and after each action, and the score."""

    def __init__(self, server: Any) -> None:
        self._server = server
        self._look, self._inventory = str(server.freeActionLook()), str(server.freeActionInventory())
        self._observation = self._look.strip()

    def after(self, action: str) -> dict[str, Any]:
        """Take an action; return it with both states."""
        server = self._server
        before = {"prev_obs": self._observation, "look_before": self._look, "inv_before": self._inventory}
        self._observation = str(server.step(action)).strip()
        self._look, self._inventory = str(server.freeActionLook()), str(server.freeActionInventory())
        after = {"obs": self._observation, "look_after": self._look, "inv_after": self._inventory}
        return {**before, "action": action, **after, "score": float(server.getScore())}


def freeze(out: Path, episodes: list[Path], settings: dict[str, Any]) -> Path:
    """Join episodes to one file, and write its hash, settings and counts."""
    # here: it takes seconds, and a mistyped option need not wait
    from swirl_lightning.benchmarks.scienceworld import FILE

    path = out / FILE
    beside = path.with_name(path.name + ".sha256")
    counts: Counter[str] = Counter()
    with whole_file(path) as file:
        for episode in episodes:
            for place, line in lines(episode):
                try:
                    counts[text_field(parse_object(line), "split")] += 1
                except BrokenRecord as error:
                    raise ValueError(f"{place} is damaged ({error}): remove the file to play it again") from None
                file.write(line.rstrip("\n").encode() + b"\n")
        beside.unlink(missing_ok=True)  # of the file that is replaced
    digest = sha256(path)
    with whole_file(beside) as file:
        file.write(f"{digest}  {path.name}\n".encode())
    made = {"scienceworld": version("scienceworld"), "python": sys.version.split()[0], **settings}
    summary = {"sha256": digest, "episodes": len(episodes), "transitions": dict(counts), "made_with": made}
    with whole_file(path.with_suffix(".json")) as file:
        file.write((json.dumps(summary, indent=2) + "\n").encode())
    return path


def _path(folder: Path, episode: Episode) -> Path:
    split, task, variation = episode
    return folder / f"{split}-{task}-{variation}.jsonl"


def _write(path: Path, rows: Iterator[dict[str, Any]]) -> None:
    with whole_file(path) as file:
        file.writelines((json.dumps(row, ensure_ascii=False) + "\n").encode() for row in rows)


def _simulator() -> Any:
    try:
        from scienceworld import ScienceWorldEnv
    except ImportError as error:
        raise ImportError(
            "the generator needs the simulator and Java 8 or later: pip install 'swirl-lightning[scienceworld]'"
        ) from error
    return ScienceWorldEnv("", None)


def main(args: Sequence[str] | None = None) -> None:
    """Entry point of the command."""
    parser = command_parser(
        "scienceworld",
        "--out FOLDER",
        "Transitions of gold paths, and off them, in the ScienceWorld simulator, as JSON lines.",
        "--out data/scienceworld",
    )
    add = parser.add_argument
    add("--out", required=True, metavar="FOLDER", help="folder to write; episodes that are there are kept")
    for name, count in (("train", 4), ("dev", 1), ("test", 1)):
        add(f"--{name}", type=int, default=count, help=f"episodes of each task from the {name} variations")
    add("--max_steps", type=int, default=100, help="steps of an episode; a longer gold path is cut there")
    add("--tasks", nargs="+", metavar="NAME", help="names of tasks, all 30 if left out")
    add("--seed", type=int, default=0, help="of the choice of variations, and of the steps off the path")
    add("--off_path", type=int, default=0, help="random steps of each episode, besides its gold path")
    print(generate(**vars(parser.parse_args(args))))


if __name__ == "__main__":
    run_command(main)
