"""Transitions of gold paths, replayed in the ScienceWorld simulator and frozen as JSON lines.

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
from pathlib import Path
from typing import Any

from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

from swirl_lightning.console.run import run_command
from swirl_lightning.data.reading import BrokenRecord, lines, parse_object, text_field
from swirl_lightning.engine.ranges import check_ranges
from swirl_lightning.files import sha256, whole_file
from swirl_lightning.prepare import command_parser

Episode = tuple[str, str, int]
"""Split, task, variation."""


def generate(
    out: str,
    train: int = 4,
    dev: int = 1,
    test: int = 1,
    max_steps: int = 100,
    tasks: list[str] | None = None,
    seed: int = 0,
) -> Path:
    """Write ``gold_transitions.jsonl``, its ``.sha256`` and a ``.json`` with settings and counts.

    Args:
        out: folder; episodes of an earlier run with the same ``max_steps`` are kept.
        train: episodes (variations) of each task from the simulator's training variations.
        dev: from its development variations.
        test: from its test variations.
        max_steps: steps of an episode; a longer gold path is cut there.
        tasks: names of tasks; null for all 30.
        seed: of the choice of variations.

    Returns:
        The file of transitions.

    Raises:
        ImportError: the simulator is not installed.
        ValueError: an unknown task, a number out of its range, or an episode of an earlier run that is damaged.
    """
    counts = dict.fromkeys(("train", "dev", "test"), "[0, inf)")
    check_ranges("scienceworld", locals(), max_steps="[1, inf)", **counts)
    folder = Path(out) / f"episodes-of-{max_steps}"
    folder.mkdir(parents=True, exist_ok=True)
    simulator = _simulator()
    try:
        chosen = choose(simulator, {"train": train, "dev": dev, "test": test}, tasks, seed)
        with Progress(*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn()) as bar:
            for split, task, variation in bar.track(chosen, description="ScienceWorld episodes"):
                path = _path(folder, (split, task, variation))
                if not path.is_file():
                    rows = replay(simulator, task, variation, max_steps)
                    _write(path, ({"task": task, "variation": variation, "split": split, **row} for row in rows))
    finally:
        simulator.close()
    settings = {"train": train, "dev": dev, "test": test, "max_steps": max_steps, "tasks": tasks, "seed": seed}
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
    server = simulator.server
    look, inventory = str(server.freeActionLook()), str(server.freeActionInventory())
    observation = look.strip()
    for step, action in enumerate(simulator.get_gold_action_sequence()[:max_steps]):
        before = {"prev_obs": observation, "look_before": look, "inv_before": inventory}
        observation = str(server.step(action)).strip()
        look, inventory = str(server.freeActionLook()), str(server.freeActionInventory())
        after = {"obs": observation, "look_after": look, "inv_after": inventory}
        yield {"step": step, **before, "action": action, **after, "score": float(server.getScore())}


def freeze(out: Path, episodes: list[Path], settings: dict[str, Any]) -> Path:
    """Join episodes to one file, and write its hash, settings and counts."""
    # here: it takes seconds, and a mistyped option need not wait
    from swirl_lightning.benchmarks.scienceworld import FILE

    path = out / FILE
    counts: Counter[str] = Counter()
    with whole_file(path) as file:
        for episode in episodes:
            for place, line in lines(episode):
                try:
                    counts[text_field(parse_object(line), "split")] += 1
                except BrokenRecord as error:
                    raise ValueError(f"{place} is damaged ({error}): remove the file to play it again") from None
                file.write(line.rstrip("\n").encode() + b"\n")
    digest = sha256(path)
    path.with_name(path.name + ".sha256").write_text(f"{digest}  {path.name}\n")
    made = {"scienceworld": version("scienceworld"), "python": sys.version.split()[0], **settings}
    summary = {"sha256": digest, "episodes": len(episodes), "transitions": dict(counts), "made_with": made}
    path.with_suffix(".json").write_text(json.dumps(summary, indent=2) + "\n")
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
        "Transitions of gold paths in the ScienceWorld simulator, as JSON lines.",
        "--out data/scienceworld",
    )
    add = parser.add_argument
    add("--out", required=True, metavar="FOLDER", help="folder to write; episodes that are there are kept")
    for name, count in (("train", 4), ("dev", 1), ("test", 1)):
        add(f"--{name}", type=int, default=count, help=f"episodes of each task from the {name} variations")
    add("--max_steps", type=int, default=100, help="steps of an episode; a longer gold path is cut there")
    add("--tasks", nargs="+", metavar="NAME", help="names of tasks, all 30 if left out")
    add("--seed", type=int, default=0, help="of the choice of variations")
    print(generate(**vars(parser.parse_args(args))))


if __name__ == "__main__":
    run_command(main)
