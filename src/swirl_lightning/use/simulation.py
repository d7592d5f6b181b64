"""Rollouts as files: frames, a contact sheet and a GIF, or texts, with the scores of each step as JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from PIL import Image

from swirl_lightning.callbacks.transition_images import image_grid
from swirl_lightning.console.run import MENDABLE
from swirl_lightning.data.images import open_rgb
from swirl_lightning.data.module import Split
from swirl_lightning.data.simulator import Simulator
from swirl_lightning.engine.ranges import check_ranges
from swirl_lightning.files.paths import check_folder
from swirl_lightning.files.reading import read_words
from swirl_lightning.files.writing import whole_folder
from swirl_lightning.prepare.frame_pairs import ENDINGS
from swirl_lightning.transition import State
from swirl_lightning.use.pairs import SPLITS
from swirl_lightning.use.rollout import Step, check, simulate
from swirl_lightning.use.runs import Run

STEPS, SHEET, MOVIE = "steps.json", "contact_sheet.png", "rollout.gif"
_RECORD = re.compile(rf"(?:train|{'|'.join(SPLITS)}): ?-?\w*")
_FRAME_MS = 800


@dataclass(frozen=True)
class SimulateConfig:
    """Settings of :func:`simulate_files`, as :func:`swirl_lightning.use.simulate`, and ``no_truth``.

    Attributes:
        branches: rollouts.
        best_of: draws at each step, of which the IDM's score chooses.
        greedy: take the likeliest token at each place.
        seed: of the draws.
        no_truth: leave out the true states.
    """

    branches: int = 1
    best_of: int = 1
    greedy: bool = False
    seed: int = 0
    no_truth: bool = False

    def __post_init__(self) -> None:
        least = dict.fromkeys(("branches", "best_of"), "whole [1, 10000]")
        check_ranges("simulate", vars(self), seed="whole [0, inf)", **least)


@dataclass(frozen=True)
class Rollouts:
    """Branches of a rollout, beside the true states where there is a simulator.

    Attributes:
        start: the state that all start from.
        branches: a step per action each.
        world: name of the simulator, None where there is none.
        true: its states; None from where it cannot go on.
        parts_at: for each branch the first step (from 1) that is not the true state; None if there is none.
        note: why there are no true states; empty otherwise.
    """

    start: State
    branches: list[list[Step]]
    world: str | None
    true: list[State | None]
    parts_at: list[int | None]
    note: str = ""

    def lines(self) -> list[str]:
        """Tell each step's scores, texts in full, and where each branch parts from the truth."""
        told = []
        for number, steps in enumerate(self.branches, start=1):
            for place, step in enumerate(steps, start=1):
                score = "" if step.score is None else f"score {step.score:.4f}, "
                told.append(f"branch {number}, step {place}: {step.action} ({score}log_prob {step.log_prob:.4f})")
                if isinstance(step.state, str):
                    told.append(f"  {step.state.strip()}")
        if self.note:
            told.append(f"no true states: {self.note}")
        if self.world is None:
            return told
        known = sum(state is not None for state in self.true)
        for number, (at, steps) in enumerate(zip(self.parts_at, self.branches, strict=True), start=1):
            if at is None:
                told.append(f"branch {number} is as {self.world} in all {known} steps that it can tell")
            else:
                told.append(f"branch {number} parts from {self.world} at step {at} ({steps[at - 1].action})")
        return told


def simulate_files(
    run: Run,
    state: str,
    actions: Sequence[str],
    folder: str | Path,
    config: SimulateConfig = SimulateConfig(),
    device: str | torch.device = "cpu",
) -> Rollouts:
    """Roll a run's FWM forward, and write what it predicts into a folder, which replaces that of an earlier call.

    Args:
        run: the trained run.
        state: see :func:`read_state`.
        actions: in words.
        folder: of the files.
        config: numbers of branches and draws.
        device: of the model.

    Raises:
        FileNotFoundError: there is no such state.
        FileExistsError: the folder holds something else.
        ValueError: as :func:`swirl_lightning.use.simulate`; or the benchmark has no such action; or the folder is
            that of the process.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not (folder / STEPS).is_file())):
        raise FileExistsError(f"{folder} exists and holds something else: take another folder")
    check_folder(folder)
    model = run.build()
    check(model, actions, config.branches, config.best_of, config.greedy)
    start = read_state(state, run)
    model.backbone.encode_states([start], torch.device("cpu"))  # refuses what it does not read before the base loads
    world, true, note = _truth(run, start, actions) if not config.no_truth else (None, [], "")
    run.load(model, device)
    draws = {name: value for name, value in asdict(config).items() if name != "no_truth"}
    branches = simulate(model, start, actions, **draws)
    parts_at = [None if world is None else _parting(world, steps, true) for steps in branches]
    found = Rollouts(start, branches, None if world is None else world.name, true, parts_at, note)
    with whole_folder(folder) as partial:
        drawn = {name: draws[name] for name in ("best_of", "greedy", "seed")}
        _write(partial, found, {"checkpoint": str(run.checkpoint), "actions": list(actions), **drawn})
    return found


def read_state(name: str, run: Run) -> State:
    """Read a state: an image file, a text file, record N of a split of the run's own data (``test:N``), or words.

    Raises:
        FileNotFoundError: it has the ending of a file, and there is none.
        OSError: the image cannot be read.
        ValueError: there is no such record, or no words, or the text file is no UTF-8.
    """
    split, _, number = name.rpartition(":")
    if split in SPLITS and number.isdecimal():
        data = run.data()
        data.check()
        rows = data.split(cast(Split, split))
        if int(number) >= len(rows):
            raise ValueError(f"--state {name}: the split has {len(rows)} records, from {split}:0 on")
        return rows[int(number)].before
    if _RECORD.fullmatch(name):
        raise ValueError(
            f"--state {name} is no record: give a split ({', '.join(SPLITS)}) and a number, as in test:0; or put words "
            "that look like it into a text file"
        )
    suffix, words = Path(name).suffix.lower(), name
    if suffix in (*ENDINGS, ".txt") and "\n" not in name:
        if not Path(name).is_file():
            raise FileNotFoundError(f"no such state: {name}; give an image or text file, words, or test:0")
        if suffix != ".txt":
            return open_rgb(Path(name))
        words = read_words(Path(name)).strip()
    if not words.strip():
        raise ValueError("the state is empty: give an image or text file, words, or test:0")
    return words


def _truth(run: Run, start: State, actions: Sequence[str]) -> tuple[Simulator | None, list[State | None], str]:
    """The simulator of the run's benchmark with its states, or the reason why there is none."""
    try:
        world = run.data().simulator()
    except MENDABLE as error:
        return None, [], str(error)
    if world is None:
        return None, [], ""
    try:
        return world, world.states(start, actions), ""
    except ValueError as error:
        raise ValueError(f"{error}; to go on without the true states give --no_truth") from None


def _parting(world: Simulator, steps: Sequence[Step], true: Sequence[State | None]) -> int | None:
    """Number the first step whose state is not the true one, from 1."""
    for number, (step, state) in enumerate(zip(steps, true, strict=True), start=1):
        if state is not None and not world.same(step.state, state):
            return number
    return None


# ---- files -------------------------------------------------------------------------------------------
def _write(folder: Path, found: Rollouts, about: dict[str, Any]) -> None:
    def shown(state: State | None, name: str) -> str | None:
        if not isinstance(state, Image.Image):
            return state
        (folder / name).parent.mkdir(exist_ok=True)
        state.save(folder / name)
        return name

    entry: dict[str, Any] = {**about, "start": shown(found.start, "start.png"), "branches": []}
    for number, (steps, place) in enumerate(zip(found.branches, found.parts_at, strict=True), start=1):
        lines = []
        for n, step in enumerate(steps, start=1):
            state = shown(step.state, f"branch-{number}/step-{n}.png")
            lines.append({"action": step.action, "state": state, "score": step.score, "log_prob": step.log_prob})
        entry["branches"].append({"steps": lines, **({} if found.world is None else {"parts_at": place})})
    if found.world is not None:
        states = [shown(state, f"true/step-{n}.png") for n, state in enumerate(found.true, start=1)]
        entry["true"] = {"simulator": found.world, "states": states}
    (folder / STEPS).write_text(json.dumps(entry, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    if isinstance(found.start, Image.Image):
        rows = _rows(found)
        titles = ["start", *(f"step {n}" for n in range(1, len(found.branches[0]) + 1))]
        image_grid([(states, captions) for _, states, captions in rows], titles).save(folder / SHEET)
        _movie(rows, folder / MOVIE)


def _rows(found: Rollouts) -> list[tuple[str, list[State], list[str]]]:
    """Name, states and captions of the true states and of each branch."""
    rows = []
    if found.world is not None:
        actions = [step.action for step in found.branches[0]]
        blank: list[State] = ["" if state is None else state for state in found.true]  # drawn as a grey tile
        rows.append(("true", [found.start, *blank], ["true", *actions]))
    for number, (steps, place) in enumerate(zip(found.branches, found.parts_at, strict=True), start=1):
        captions = [
            f"{step.action} ({step.log_prob if step.score is None else step.score:.2f})"
            + (f", parts from {found.world}" if n == place else "")
            for n, step in enumerate(steps, start=1)
        ]
        name = f"branch {number}"
        rows.append((name, [found.start, *(step.state for step in steps)], [name, *captions]))
    return rows


def _movie(rows: Sequence[tuple[str, list[State], list[str]]], path: Path) -> None:
    """Write a GIF with a frame per step, in which all rows stand side by side."""
    names = [name for name, _, _ in rows]
    frames = []
    for place in range(len(rows[0][1])):
        states = [states[place] for _, states, _ in rows]
        frames.append(image_grid([(states, [captions[place] if place else "start" for _, _, captions in rows])], names))
    size = (max(frame.width for frame in frames), max(frame.height for frame in frames))
    even = [Image.new("RGB", size, (255, 255, 255)) for _ in frames]
    for under, frame in zip(even, frames, strict=True):
        under.paste(frame)
    even[0].save(path, save_all=True, append_images=even[1:], duration=_FRAME_MS, loop=0)
