"""Tiles of MiniGrid frames: G x G cells of 8 x 8 pixels, each of one of a closed set of kinds.

A *scene* is a (G, G) uint8 array of indices into `CELLS`, row by row from the top. `render` and
`read` are inverse to each other on scenes; `read` also takes imperfect frames, a world model's for
instance, and finds the nearest tile of each cell. A scene's *layout* is the part that no action changes, and
determines its split.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from swirl_lightning.transition import State

GRID = 6
"""Cells along a side of a frame, as the shipped base knows them."""
TILE = 8
COLOURS = ("blue", "green", "grey", "purple", "red", "yellow")
OBJECTS = ("key", "ball", "box")
FACINGS = ("right", "down", "left", "up")
"""Headings in the simulator's order of `agent_dir`."""

Scene = NDArray[np.uint8]


class Cell(NamedTuple):
    """Kind of cell.

    Attributes:
        kind: floor, wall, goal, lava, key, ball, box or door.
        colour: of a key, ball, box or door.
        door: open, closed or locked, for a door.
        facing: direction of the agent, if it stands on the cell.
    """

    kind: str
    colour: str = ""
    door: str = ""
    facing: str = ""

    @property
    def name(self) -> str:
        """Name of the cell in words: ``red key``, ``open blue door``, ``agent facing left on goal``."""
        thing = " ".join(word for word in (self.door, self.colour, self.kind) if word)
        if not self.facing:
            return thing
        return f"agent facing {self.facing}" + ("" if self.kind == "floor" else f" on {thing}")

    @property
    def bare(self) -> Cell:
        """The cell in a layout: without agent, every door closed."""
        return Cell(self.kind, self.colour, "closed" if self.door else "")


GROUNDS = (Cell("floor"), Cell("goal"), *(Cell("door", colour, "open") for colour in COLOURS))
"""Cells that the agent can stand on."""
CELLS: tuple[Cell, ...] = (
    *(Cell(kind) for kind in ("floor", "wall", "goal", "lava")),
    *(Cell(kind, colour) for kind in OBJECTS for colour in COLOURS),
    *(Cell("door", colour, door) for door in ("open", "closed", "locked") for colour in COLOURS),
    *(ground._replace(facing=facing) for ground in GROUNDS for facing in FACINGS),
)
INDEX: dict[Cell, int] = {cell: index for index, cell in enumerate(CELLS)}

SPLITS = {"base": 30, "warmup": 15, "state_only": 25, "validation": 15, "test": 15}
"""Percent of all layouts that belong to each split."""
HELD_OUT = ("validation", "test")

_BARE: Scene = np.array([INDEX[cell.bare] for cell in CELLS], dtype=np.uint8)


def require_minigrid() -> None:
    """Raise an ImportError with the cure if the simulator is missing."""
    try:
        import minigrid  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "the MiniGrid benchmark needs the simulator: pip install 'swirl-lightning[minigrid]'"
        ) from error


def thing_of(cell: Cell) -> Any:
    """Return the simulator's object in a cell; None of bare floor."""
    from minigrid.core import world_object

    if cell.kind == "floor":
        return None
    if cell.kind == "door":
        return world_object.Door(cell.colour, cell.door == "open", cell.door == "locked")
    make = getattr(world_object, cell.kind.title())
    return make(cell.colour) if cell.colour else make()


@cache
def atlas() -> NDArray[np.uint8]:
    """Return the simulator's own image of every cell, (len(CELLS), 8, 8, 3)."""
    require_minigrid()
    from minigrid.core.grid import Grid

    tiles = []
    for cell in CELLS:
        heading = FACINGS.index(cell.facing) if cell.facing else None
        tiles.append(Grid.render_tile(thing_of(cell), agent_dir=heading, tile_size=TILE))
    return np.stack(tiles).astype(np.uint8)


def render(scene: Scene) -> Image.Image:
    """Draw the frame of a scene, RGB, equal to the simulator's full view without highlighting."""
    tiles = atlas()[scene]  # (row, column, y, x, rgb)
    side = len(scene) * TILE
    return Image.fromarray(np.ascontiguousarray(tiles.swapaxes(1, 2)).reshape(side, side, 3))


def grid_of(state: State) -> int:
    """Return the number of cells along a side of a frame; 0 of a state that is no square of whole cells."""
    if isinstance(state, str) or state.width != state.height or state.width % TILE:
        return 0
    return state.width // TILE


def resized(frame: Image.Image, grid: int) -> Image.Image:
    """Return a frame as one of (grid, grid) cells; a model may write frames of a size of its own."""
    side = (grid * TILE, grid * TILE)
    return frame if frame.size == side else frame.resize(side, Image.Resampling.LANCZOS)


def read(frames: Sequence[Image.Image]) -> Scene:
    """Find the nearest tile (least squares over RGB) of every cell.

    Args:
        frames: N images of the same size.

    Returns:
        (N, G, G) scenes; exact on frames of the simulator.

    Raises:
        ValueError: an image is no square of whole cells, or of another size than the first.
    """
    if not frames:
        return np.zeros((0, GRID, GRID), dtype=np.uint8)
    grid = grid_of(frames[0])
    for frame in frames:
        if not grid or grid_of(frame) != grid:
            raise ValueError(
                f"MiniGrid frames are squares of cells of {TILE} x {TILE} pixels, all of one size; the first has "
                f"{frames[0].width} x {frames[0].height} pixels, another {frame.width} x {frame.height}"
            )
    pixels = np.stack([np.asarray(frame.convert("RGB")) for frame in frames])
    cells = pixels.reshape(-1, grid, TILE, grid, TILE, 3).swapaxes(2, 3)
    flat = cells.reshape(-1, TILE * TILE * 3).astype(np.float64)
    tiles = atlas().reshape(len(CELLS), -1).astype(np.float64)
    # |cell|² is the same for every tile and left out of the distance.
    distance = (tiles**2).sum(1) - 2 * flat @ tiles.T  # (N * G * G, len(CELLS))
    return distance.argmin(1).astype(np.uint8).reshape(-1, grid, grid)


def describe(state: State | Scene) -> list[str]:
    """Describe the cells of a frame or a scene in words, row by row from the top."""
    if isinstance(state, str):
        raise TypeError(f"a MiniGrid state is an image, got text: {state[:40]!r}")
    scene = read([state])[0] if isinstance(state, Image.Image) else state
    return [CELLS[index].name for index in scene.reshape(-1)]


def layout(scene: Scene) -> Scene:
    """Return the scene without its agent and with every door closed, which no movement and no toggle changes."""
    return _BARE[scene]


def split_of(scene: Scene) -> str:
    """Return the one split in which this scene's layout may be the state before; the same for every seed.

    So a held-out layout occurs in no other split, wherever the agent is and whatever the state of its doors.
    """
    digest = hashlib.blake2b(layout(scene).tobytes(), digest_size=8).digest()
    percent = int.from_bytes(digest, "big") % 100
    for split, share in SPLITS.items():
        percent -= share
        if percent < 0:
            return split
    raise AssertionError("the shares of SPLITS add up to 100")


def random_scene(rng: np.random.Generator, grid: int = GRID) -> Scene:
    """Draw random cells, (grid, grid): no layout of a family, no dynamics, one agent somewhere.

    It is for training on the look of frames, without dynamics. Layouts of the held-out splits are excluded.
    """
    while split_of(scene := _compose(rng, grid)) in HELD_OUT:
        pass
    return scene


def _compose(rng: np.random.Generator, grid: int) -> Scene:
    scene = np.full((grid, grid), INDEX[Cell("floor")], dtype=np.uint8)
    walls, things = rng.uniform(0, 0.4), rng.uniform(0.05, 0.5)
    # Each kind of thing, not each colour of it, gets an equal share.
    kinds = [[i for i, c in enumerate(CELLS) if c.kind == k and not c.facing] for k in (*OBJECTS, "goal", "lava")]
    kinds += [[INDEX[Cell("door", c, d)] for c in COLOURS] for d in ("open", "closed", "locked")]
    for place in np.ndindex(grid, grid):
        if rng.random() < walls:
            scene[place] = INDEX[Cell("wall")]
        elif rng.random() < things:
            scene[place] = rng.choice(kinds[rng.integers(len(kinds))])
    if rng.random() < 0.5:
        scene[[0, -1], :] = scene[:, [0, -1]] = INDEX[Cell("wall")]
    ground = Cell("floor") if rng.random() < 0.7 else GROUNDS[rng.integers(len(GROUNDS))]
    agent = ground._replace(facing=FACINGS[rng.integers(4)])
    scene[tuple(rng.integers(1, grid - 1, size=2))] = INDEX[agent]
    return scene
