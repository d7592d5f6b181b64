"""Random scenes of the tiny world and random edits of them, which do not depend on effects of actions."""

from __future__ import annotations

import numpy as np

from recipes.tiny_text import place
from swirl_lightning.benchmarks.minigrid.simulator import generate
from swirl_lightning.benchmarks.minigrid.tiles import (
    CELLS,
    COLOURS,
    FACINGS,
    GRID,
    HELD_OUT,
    INDEX,
    Cell,
    Scene,
    random_scene,
    read,
    split_of,
)

FLOOR, WALL = INDEX[Cell("floor")], INDEX[Cell("wall")]
THINGS = [i for i, cell in enumerate(CELLS) if not cell.facing and cell.kind not in ("floor", "wall")]
_GROUPS = [
    [i for i in THINGS if (CELLS[i].kind, CELLS[i].door) == group]
    for group in sorted({(CELLS[i].kind, CELLS[i].door) for i in THINGS})
]


def _without_agent(index: int) -> int:
    return INDEX[CELLS[index]._replace(facing="")]


def agent_place(scene: Scene) -> int:
    """Return the index of the agent's cell, row by row."""
    return next(i for i, c in enumerate(scene.reshape(-1)) if CELLS[c].facing)


def ahead(scene: Scene) -> int | None:
    """Return the index of the cell in front of the agent, None outside the grid."""
    at = agent_place(scene)
    facing = FACINGS.index(CELLS[scene.reshape(-1)[at]].facing)
    grid = len(scene)
    row, column = at // grid + (0, 1, 0, -1)[facing], at % grid + (1, 0, -1, 0)[facing]
    return row * grid + column if 0 <= row < grid and 0 <= column < grid else None


class Scenes:
    """Source of scenes: frames of the ``base`` split (single ones, never steps) and random grids.

    Args:
        frames: number of transitions of the split whose frames are used.
        seed: of everything drawn.
        split: None for training scenes, which exclude the held-out layouts; the name of a held-out split for
            scenes of that split alone.
        grid: cells along a side of a scene.
    """

    def __init__(self, frames: int, seed: int, split: str | None = None, grid: int = GRID) -> None:
        self.grid = grid
        self.rng = np.random.default_rng([seed, len(split or "")])
        self.split = split
        steps = generate(split or "base", frames, seed=seed, grid=grid)
        self._frames = read([s for t in steps for s in (t.before, t.observed) if not isinstance(s, str)])

    def usable(self, scene: Scene) -> bool:
        """Tell whether the scene's layout belongs to the split."""
        found = split_of(scene)
        return found == self.split if self.split else found not in HELD_OUT

    def draw(self, sparse: bool = False) -> Scene:
        """Draw a scene; with ``sparse`` it has few things."""
        while True:
            draw = self.rng.random()
            if sparse or draw < 0.2:
                scene = self._sparse()
            elif draw < 0.6 or self.split:  # `random_scene` excludes the held-out layouts
                scene = self._recoloured(self._frames[self.rng.integers(len(self._frames))])
            else:
                scene = random_scene(self.rng, self.grid)
            if self.usable(scene):
                return scene

    def _recoloured(self, scene: Scene) -> Scene:
        order = self.rng.permutation(len(COLOURS))
        swap = {"": "", **{COLOURS[i]: COLOURS[j] for i, j in enumerate(order)}}
        return np.array([INDEX[c._replace(colour=swap[c.colour])] for c in CELLS], dtype=np.uint8)[scene]

    def _sparse(self) -> Scene:
        scene = np.full((self.grid, self.grid), FLOOR, dtype=np.uint8)
        if self.rng.random() < 0.7:
            scene[[0, -1], :] = scene[:, [0, -1]] = WALL
        cells = scene.reshape(-1)
        for at in self.rng.permutation(len(cells))[: self.rng.integers(1, 5)]:
            cells[at] = self.thing()
        free = np.flatnonzero(cells == FLOOR)
        cells[self.rng.choice(free)] = INDEX[Cell("floor", facing=FACINGS[self.rng.integers(4)])]
        return scene

    def thing(self) -> int:
        """Draw a thing, each kind with equal probability."""
        group = _GROUPS[self.rng.integers(len(_GROUPS))]
        return int(group[self.rng.integers(len(group))])

    def edited(self, scene: Scene, count: int) -> tuple[Scene, str]:
        """Make ``count`` random edits of ``scene``; returns the result, and the edits in words."""
        while True:
            cells = scene.reshape(-1).copy()
            words = [self._edit(cells) for _ in range(count)]
            result = cells.reshape(self.grid, self.grid)
            if not np.array_equal(result, scene) and self.usable(result):
                return result, "; ".join(words)

    def _edit(self, cells: Scene) -> str:
        """Change ``cells`` (grid * grid,) in place; returns the edit in words."""
        rng, draw = self.rng, self.rng.random()
        at = next(i for i, c in enumerate(cells) if CELLS[c].facing)
        if draw < 0.3:
            others = [f for f in FACINGS if f != CELLS[cells[at]].facing]
            facing = others[rng.integers(3)]
            cells[at] = INDEX[CELLS[cells[at]]._replace(facing=facing)]
            return f"the agent faces {facing}"
        if draw < 0.55:
            grounds = [i for i, c in enumerate(cells) if CELLS[c]._replace(facing="left") in INDEX and i != at]
            near = [
                i for i in grounds if abs(i // self.grid - at // self.grid) + abs(i % self.grid - at % self.grid) == 1
            ]
            choice = near if near and rng.random() < 0.6 else grounds
            if choice:
                to = int(choice[rng.integers(len(choice))])
                cells[to] = INDEX[CELLS[cells[to]]._replace(facing=CELLS[cells[at]].facing)]
                cells[at] = _without_agent(cells[at])
                return f"the agent stands at {place(to, self.grid)}"
        doors = [i for i, c in enumerate(cells) if CELLS[c].kind == "door" and i != at]
        if draw < 0.7 and doors:
            to = int(doors[rng.integers(len(doors))])
            old = CELLS[cells[to]]
            state = [s for s in ("open", "closed", "locked") if s != old.door][rng.integers(2)]
            cells[to] = INDEX[old._replace(door=state)]
            return f"the {old.colour} door at {place(to, self.grid)} is {state}"
        return self._replace(cells, at)

    def _replace(self, cells: Scene, agent: int) -> str:
        """Put something into one cell, or take it away."""
        rng = self.rng
        full = [i for i, c in enumerate(cells) if c not in (FLOOR, WALL) and i != agent]
        if full and rng.random() < 0.45:
            to = int(full[rng.integers(len(full))])
            words = f"remove the {CELLS[cells[to]].name} at {place(to, self.grid)}"
            cells[to] = FLOOR
            return words
        to = int(rng.integers(len(cells)))
        while to == agent:
            to = int(rng.integers(len(cells)))
        new = self.thing()
        cells[to] = new
        return f"put {CELLS[new].name} at {place(to, self.grid)}"
