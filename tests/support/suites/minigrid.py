"""Frames of MiniGrid, and hashes of its transitions; as a command, that of 60 of them in a process of its own."""

from __future__ import annotations

import hashlib

import numpy as np
from PIL import Image

from swirl_lightning.benchmarks.minigrid import generate, render
from swirl_lightning.benchmarks.minigrid.tiles import GRID, INDEX, Cell
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


if __name__ == "__main__":
    print(fingerprint(generate("test", 60, seed=3)))
