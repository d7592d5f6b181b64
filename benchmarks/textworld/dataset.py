"""Transitions of many games as JSON lines, made once for each choice of settings."""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from importlib.metadata import version
from itertools import count
from pathlib import Path
from typing import Any

from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

from swirl_lightning.benchmarks.shares import quotas
from swirl_lightning.benchmarks.textworld.facts import write
from swirl_lightning.benchmarks.textworld.games import World, play, require_textworld
from swirl_lightning.data.reading import BrokenRecord, SkippedRecords, read_settings, records, text_field
from swirl_lightning.engine.ranges import check_ranges
from swirl_lightning.files.hashes import sha256
from swirl_lightning.files.writing import whole_file
from swirl_lightning.transition import Transition

SPLITS = ("warmup", "state_only", "validation", "test")
"""Splits, each with games of its own."""

FORMAT = 1
"""Version of the generator: raise it if the same settings give other data."""

_GAMES = 100_000  # seeds of a split
_PARTS = ("unused", *SPLITS)  # of a world's seeds
_WORLDS = 2**32 // (_GAMES * len(_PARTS))
_STALLED = 200  # games in a row that gave nothing new

Row = dict[str, Any]


def game_seeds(split: str, world_seed: int) -> range:
    """Return the seeds of the games of a split; no two splits and no two world seeds share any.

    Raises:
        ValueError: ``world_seed`` is too large or negative.
    """
    check_ranges("data", {"world_seed": world_seed}, world_seed=f"whole [0, {_WORLDS - 1}]")
    start = (world_seed * len(_PARTS) + _PARTS.index(split)) * _GAMES
    return range(start, start + _GAMES)


def make_rows(
    split: str,
    size: int,
    world: World,
    *,
    world_seed: int = 0,
    max_gap: int = 1,
    shares: Mapping[str, float] | None = None,
) -> Iterator[Row]:
    """Yield transitions of game after game, as they are written, in the order of play.

    For ``state_only`` they are pairs of states that differ, 1 to ``max_gap`` steps apart, without actions. No state
    is followed twice by the same action within a split; no pair comes twice.

    Args:
        split: one of `SPLITS`.
        size: number of transitions.
        world: size of the games, and how they are played.
        world_seed: another one gives other games.
        max_gap: the most steps between the states of a pair; its distance is drawn evenly.
        shares: proportions of the kinds of action; None for those of the play. Kinds that are left out do not occur.
            Of a pair the first step counts, and none is of a kind that is left out.

    Raises:
        ImportError: the engine is not installed.
        ValueError: game after game gives nothing new.
    """
    seen: set[tuple[str, str]] = set()
    missing = None if shares is None else quotas(size, {kind: share for kind, share in shares.items() if share})
    stalled = 0
    for seed in game_seeds(split, world_seed):
        if len(seen) == size:
            return
        if stalled == _STALLED:
            raise ValueError(
                f"TextWorld gave {len(seen)} distinct transitions for split {split!r}, {size} were asked for; "
                "raise rooms, objects or steps, or ask for fewer or for other shares"
            )
        stalled += 1
        for kinds, row in _pairs(seed, world, max_gap) if split == "state_only" else _steps(seed, world):
            key = row["before"], row.get("action") or row["after"]
            if key in seen or len(seen) == size:
                continue
            if missing is not None:
                if not missing[kinds[0]] or not missing.keys() >= set(kinds):
                    continue
                missing[kinds[0]] -= 1
            seen.add(key)
            stalled = 0
            yield row


def _steps(seed: int, world: World) -> Iterator[tuple[list[str], Row]]:
    for number, step in enumerate(play(seed, world)):
        about = {"game": seed, "step": number, "kind": step.kind, "on_path": step.on_path}
        yield [step.kind], {**about, "before": write(step.before), "action": step.action, "after": write(step.after)}


def _pairs(seed: int, world: World, max_gap: int) -> Iterator[tuple[list[str], Row]]:
    steps = list(play(seed, world))
    states = [write(step.before) for step in steps] + [write(step.after) for step in steps[-1:]]
    draw = random.Random(seed)
    for number, before in enumerate(states):
        gap = draw.randint(1, max_gap)
        if number + gap < len(states) and states[number + gap] != before:
            kinds = [step.kind for step in steps[number : number + gap]]
            yield kinds, {"game": seed, "step": number, "gap": gap, "before": before, "after": states[number + gap]}


def ensure(
    folder: Path,
    split: str,
    size: int,
    world: World,
    *,
    world_seed: int = 0,
    max_gap: int = 1,
    shares: Mapping[str, float] | None = None,
) -> Path:
    """Return the file of a split, ``<split>-<hash of its settings>.jsonl``, made if it is missing.

    Rows are in random order. A ``.json`` beside it has the settings, the file's SHA-256 and counts. Both
    appear as a whole or not at all, so several processes may call this at once.

    Args:
        folder: of the data.
        split: as for `make_rows`, as the others.
        size: as there.
        world: as there.
        world_seed: as there.
        max_gap: as there.
        shares: as there.

    Raises:
        ImportError: it is not there, and the engine is not installed.
        ValueError: as `make_rows` does.
    """
    settings = {"format": FORMAT, "split": split, "size": size, "world_seed": world_seed, **asdict(world)}
    if split == "state_only":
        settings["max_gap"] = max_gap
    if shares is not None:
        settings["shares"] = dict(shares)
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    path = folder / f"{split}-{digest[:12]}.jsonl"
    if path.is_file() and path.with_suffix(".json").is_file():
        return path
    require_textworld()
    folder.mkdir(parents=True, exist_ok=True)
    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, transient=True) as bar:
        rows = list(
            bar.track(
                make_rows(split, size, world, world_seed=world_seed, max_gap=max_gap, shares=shares),
                total=size,
                description=f"TextWorld {split}, into {folder}",
            )
        )
    if len(rows) < size:
        raise ValueError(f"the {_GAMES} games of TextWorld's split {split!r} gave {len(rows)} transitions, not {size}")
    random.Random(digest).shuffle(rows)
    named = ({"id": f"{split}-{number:05d}", **row} for number, row in zip(count(), rows, strict=False))
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in named)
    summary = {
        "settings": settings,
        "textworld": version("textworld"),
        "sha256": hashlib.sha256(text.encode()).hexdigest(),
        "games": len({row["game"] for row in rows}),
        "kinds": dict(Counter(row["kind"] for row in rows if "kind" in row).most_common()),
    }
    for place, content in ((path, text), (path.with_suffix(".json"), json.dumps(summary, indent=2) + "\n")):
        with whole_file(place, alone=False) as file:
            file.write(content.encode())
    return path


def load(path: Path) -> list[Transition]:
    """Load the transitions of a file that `ensure` made.

    Raises:
        ValueError: it was changed since then, or what was written beside it is damaged.
    """
    wanted = read_settings(path.with_suffix(".json")).get("sha256")
    found = sha256(path)
    if found != wanted:
        raise ValueError(
            f"{path} was changed after it was made: its SHA-256 is {found}, not {wanted}; delete it to make it anew"
        )
    skipped = SkippedRecords(path)
    rows = []
    for place, fields in records(path, skipped):
        try:
            before, after, name = (text_field(fields, key) for key in ("before", "after", "id"))
            action = text_field(fields, "action") if "action" in fields else None
        except BrokenRecord as error:
            skipped.add(place, error)
            continue
        meta: dict[str, Any] = {key: fields[key] for key in ("game", "step", "kind", "on_path", "gap") if key in fields}
        rows.append(Transition(before, after, action, id=name, meta=meta))
    skipped.report(len(rows), strict=True)
    return rows
