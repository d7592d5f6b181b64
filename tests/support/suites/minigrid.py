"""Frames of MiniGrid, and hashes of its transitions; as a command, that of 60 of them in a process of its own."""

from __future__ import annotations

import hashlib

import numpy as np
from PIL import Image

from swirl_lightning.benchmarks.minigrid import generate, render
from swirl_lightning.benchmarks.minigrid.tiles import CELLS, GRID, INDEX, Cell
from swirl_lightning.transition import Transition


def fingerprint(rows: list[Transition]) -> str:
    digest = hashlib.sha256()
    for row in rows:
        digest.update(row.before.tobytes() + row.after.tobytes() + f"{row.action}{row.id}{row.meta}".encode())
    return digest.hexdigest()


def scene(**things: Cell) -> Image.Image:
    """Walls around floor, and things by place: ``at_1_2=Cell(...)`` is column 1, row 2."""
    cells = np.full((GRID, GRID), INDEX[Cell("wall")], dtype=np.uint8)
    cells[1:-1, 1:-1] = INDEX[Cell("floor")]
    for name, cell in things.items():
        _, column, row = name.split("_")
        cells[int(row), int(column)] = INDEX[cell]
    return render(cells)


def agent(facing: str, kind: str = "floor") -> Cell:
    """The agent on a cell."""
    return Cell(kind, facing=facing)


def inverse(before: np.ndarray, after: np.ndarray) -> str:
    """The action, from the two frames' cells alone."""
    old, new = ([CELLS[i] for i in scene.reshape(-1)] for scene in (before, after))
    here, there = (next(i for i, cell in enumerate(cells) if cell.facing) for cells in (old, new))
    if here != there:
        return "move forward"
    order = ("right", "down", "left", "up")
    turn = (order.index(new[here].facing) - order.index(old[here].facing)) % 4
    if turn:
        return {1: "turn right", 3: "turn left"}[turn]
    (changed,) = (i for i in range(len(old)) if old[i] != new[i])
    was, now = old[changed], new[changed]
    if was.kind == "door":
        verb = {"locked": "unlock", "closed": "open", "open": "close"}[was.door]
        return f"{verb} the {was.colour} door"
    return f"drop the {now.name}" if was.kind == "floor" else f"pick up the {was.name}"


if __name__ == "__main__":
    print(fingerprint(generate("test", 60, seed=3)))
