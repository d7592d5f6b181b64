"""Tasks of the tiny base: reading, drawing, copying, editing and above all comparing frames."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from transformers import PreTrainedTokenizerFast

from recipes.tiny_edits import FLOOR, WALL, Scenes, agent_place, ahead
from recipes.tiny_text import commands, place
from swirl_lightning.benchmarks.minigrid.tiles import CELLS, Scene

PLACES = {
    "changed": 0.42,
    "count": 0.03,
    "difference": 0.07,
    "edit": 0.24,
    "copy": 0.04,
    "objects": 0.04,
    "draw": 0.03,
    "where": 0.03,
    "glance": 0.05,
    "ahead": 0.03,
    "text": 0.02,
}
"""Shares of the tasks in the first stage, which mostly trains places of things."""
NAMES = {
    "changed": 0.36,
    "count": 0.02,
    "difference": 0.05,
    "edit": 0.20,
    "copy": 0.05,
    "objects": 0.04,
    "draw": 0.03,
    "where": 0.03,
    "look": 0.08,
    "ahead": 0.05,
    "name": 0.07,
    "text": 0.02,
}
"""Shares of the tasks in the second stage, which adds their names."""
SEEN_WEIGHT = 0.2
"""Loss weight of a second frame that does not follow from the text: most of it is a copy of the first."""


@dataclass
class Sample:
    """Training sequence.

    Attributes:
        ids: tokens.
        weights: loss weight of each token; 1 for an answer.
        task: its name.
    """

    task: str
    ids: list[int] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)


class Tasks:
    """Generator of samples of all tasks.

    Args:
        scenes: source of frames.
        tokenizer: the tiny base's.
        codes: the VQ code of each kind of cell, (len(CELLS),).
        shares: frequency of each task; the tasks are the methods of these names.
        bare_weight: loss weight of floor and wall in a frame that is the answer, since most cells are bare.
    """

    def __init__(
        self,
        scenes: Scenes,
        tokenizer: PreTrainedTokenizerFast,
        codes: list[int],
        shares: Mapping[str, float] = NAMES,
        bare_weight: float = 1.0,
    ) -> None:
        self._scenes = scenes
        self._rng = scenes.rng
        self._encode = lru_cache(100_000)(lambda text: tokenizer.encode(text, add_special_tokens=False))
        self._image_ids = np.array(codes) + len(tokenizer)
        vocabulary = tokenizer.get_vocab()
        self._boi, self._eoi = vocabulary["<boi>"], vocabulary["<eoi>"]
        self._bos, self._eos = tokenizer.bos_token_id, tokenizer.eos_token_id
        self._commands = commands()
        self._shares = shares
        self._bare_weight = bare_weight
        self._makers: dict[str, Callable[[Sample], None]] = {name: getattr(self, f"_{name}") for name in shares}

    def draw(self, task: str | None = None) -> Sample:
        """Draw a sample of ``task``, or of a random one."""
        if task is None:
            shares = np.array(list(self._shares.values()))
            task = list(self._shares)[self._rng.choice(len(shares), p=shares / shares.sum())]
        sample = Sample(task)
        self._add(sample, [self._bos], 0.0)
        self._makers[task](sample)
        return sample

    # ---- pieces ----------------------------------------------------------------------------------
    @staticmethod
    def _add(sample: Sample, ids: list[int], weight: float) -> None:
        sample.ids.extend(ids)
        sample.weights.extend([weight] * len(ids))

    def _say(self, sample: Sample, text: str, weight: float = 0.0) -> None:
        self._add(sample, self._encode(text), weight)

    def _show(self, sample: Sample, scene: Scene, weight: float = 0.0) -> None:
        self._add(sample, [self._boi], 0.0)
        cells = scene.reshape(-1)
        sample.ids.extend(self._image_ids[cells].tolist())
        bare = min(weight, self._bare_weight)
        sample.weights.extend(bare if cell in (FLOOR, WALL) else weight for cell in cells)
        self._add(sample, [self._eoi], 0.0)

    def _place(self, index: int) -> str:
        return place(index, self._scenes.grid)

    def _answer(self, sample: Sample, text: str) -> None:
        self._say(sample, text, 1.0)
        self._add(sample, [self._eos], 1.0)

    def _pair(self, sample: Sample) -> tuple[Scene, Scene]:
        """Show two frames that differ by one to three edits."""
        first = self._scenes.draw()
        second, _ = self._scenes.edited(first, 1 + int(self._rng.choice(3, p=(0.65, 0.25, 0.1))))
        one, two = ("Before: ", "\nAfter: ") if self._rng.random() < 0.8 else ("One: ", "\nTwo: ")
        self._say(sample, one)
        self._show(sample, first)
        self._say(sample, two)
        self._show(sample, second, SEEN_WEIGHT)
        return first, second

    # ---- two frames ------------------------------------------------------------------------------
    def _changed(self, sample: Sample) -> None:
        first, second = self._pair(sample)
        changes = [
            f"{self._place(i)}: {CELLS[a].name} to {CELLS[b].name}"
            for i, (a, b) in enumerate(zip(first.reshape(-1), second.reshape(-1), strict=True))
            if a != b
        ]
        self._say(sample, "\nChanged: ")
        self._answer(sample, "; ".join(changes))

    def _count(self, sample: Sample) -> None:
        first, second = self._pair(sample)
        self._say(sample, "\nHow many cells changed? ")
        self._answer(sample, str(int((first != second).sum())))

    def _difference(self, sample: Sample) -> None:
        """Answer with an image: the new things, on bare floor."""
        first, second = self._pair(sample)
        self._say(sample, "\nNew: ")
        self._show(sample, np.where(first != second, second, FLOOR), 1.0)

    def _edit(self, sample: Sample) -> None:
        first = self._scenes.draw()
        second, words = self._scenes.edited(first, 1 + int(self._rng.choice(3, p=(0.7, 0.2, 0.1))))
        self._say(sample, "Before: ")
        self._show(sample, first)
        self._say(sample, f"\nEdit: {words}\nAfter: ")
        self._show(sample, second, 1.0)

    def _copy(self, sample: Sample) -> None:
        scene = self._scenes.draw()
        self._say(sample, "Frame: ")
        self._show(sample, scene)
        self._say(sample, "\nCopy: ")
        self._show(sample, scene, 1.0)

    # ---- one frame -------------------------------------------------------------------------------
    def _caption(self, scene: Scene) -> str:
        cells = scene.reshape(-1)
        return "; ".join(f"{self._place(i)}: {CELLS[c].name}" for i, c in enumerate(cells) if c not in (FLOOR, WALL))

    def _objects(self, sample: Sample) -> None:
        scene = self._scenes.draw(sparse=True)
        self._say(sample, "Frame: ")
        self._show(sample, scene)
        self._say(sample, "\nObjects: ")
        self._answer(sample, self._caption(scene))

    def _draw(self, sample: Sample) -> None:
        scene = self._scenes.draw(sparse=True)
        walls = "; walls all around" if scene[0, 0] == WALL or scene[0, 1] == WALL else ""
        self._say(sample, f"Objects: {self._caption(scene)}{walls}\nDraw: ")
        self._show(sample, scene, 1.0)

    def _where(self, sample: Sample) -> None:
        scene = self._scenes.draw()
        cells = scene.reshape(-1)
        kinds = [int(c) for c in np.unique(cells) if c not in (FLOOR, WALL) and (cells == c).sum() <= 3]
        name = CELLS[kinds[self._rng.integers(len(kinds))]].name
        places = [self._place(i) for i, c in enumerate(cells) if CELLS[c].name == name]
        self._say(sample, "Frame: ")
        self._show(sample, scene)
        self._say(sample, f"\nWhere is the {name}? ")
        self._answer(sample, "; ".join(places))

    def _glance(self, sample: Sample) -> None:
        """Choose any six cells, most of them bare."""
        scene = self._scenes.draw()
        self._name_cells(sample, scene, self._rng.permutation(scene.size)[:6])

    def _look(self, sample: Sample) -> None:
        """Choose up to five things, and other cells up to seven."""
        scene = self._scenes.draw()
        cells = scene.reshape(-1)
        things = self._rng.permutation(np.flatnonzero((cells != FLOOR) & (cells != WALL)))[:5]
        others = self._rng.integers(len(cells), size=7 - len(things))
        self._name_cells(sample, scene, self._rng.permutation(np.concatenate([things, others])))

    def _name_cells(self, sample: Sample, scene: Scene, chosen: np.ndarray) -> None:
        self._say(sample, "Frame: ")
        self._show(sample, scene)
        self._say(sample, "\nLook:")
        for i in chosen.tolist():
            self._say(sample, f" {self._place(i)}:")
            self._say(sample, f" {CELLS[scene.reshape(-1)[i]].name};", 1.0)

    def _ahead(self, sample: Sample) -> None:
        scene = self._scenes.draw()
        cells = scene.reshape(-1)
        front = ahead(scene)
        self._say(sample, "Frame: ")
        self._show(sample, scene)
        self._say(sample, "\nAhead of the agent: ")
        here = f"{CELLS[cells[agent_place(scene)]].name} at {self._place(agent_place(scene))}"
        there = "nothing" if front is None else f"{CELLS[cells[front]].name} at {self._place(front)}"
        self._answer(sample, f"{there}; {here}")

    def _name(self, sample: Sample) -> None:
        """Ask for names of single cells, or for cells of names."""
        for cell in self._rng.integers(len(CELLS), size=12).tolist():
            code, name = [int(self._image_ids[cell])], CELLS[cell].name
            if self._rng.random() < 0.6:
                self._add(sample, [self._boi, *code, self._eoi], 0.0)
                self._say(sample, f" {name};", 1.0)
            else:
                self._say(sample, f" {name}: ")
                self._add(sample, [self._boi], 0.0)
                self._add(sample, code, 1.0)
                self._add(sample, [self._eoi], 0.0)

    def _text(self, sample: Sample) -> None:
        """Write words alone: several sentences of the world."""
        said = [self._commands[i] for i in self._rng.integers(len(self._commands), size=8)]
        self._answer(sample, "; ".join(said))
