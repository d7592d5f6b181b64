"""MiniGrid's simulator, started from a frame alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from swirl_lightning.benchmarks.minigrid.simulator import LARGEST, SMALLEST, THINGS, scene_of
from swirl_lightning.benchmarks.minigrid.tiles import (
    CELLS,
    COLOURS,
    FACINGS,
    TILE,
    Cell,
    Scene,
    grid_of,
    read,
    render,
    require_minigrid,
    resized,
    thing_of,
)
from swirl_lightning.console.run import nearest
from swirl_lightning.transition import State

_MOVES = ("turn left", "turn right", "move forward")
_DOORS = tuple(f"{colour} door" for colour in COLOURS)
_VERBS = {"pick up": THINGS, "drop": THINGS, "open": _DOORS, "close": _DOORS, "unlock": _DOORS}


class MiniGridSimulator:
    """MiniGrid from a frame. What the agent carries is not in it, and follows from the first action that needs it.

    An action that cannot happen changes nothing. In lava and on the rim of the grid, beyond which MiniGrid cannot
    look, the true states end.

    Raises:
        ImportError: the simulator is not installed.
    """

    name = "MiniGrid"

    def __init__(self) -> None:
        require_minigrid()

    def states(self, state: State, actions: Sequence[str]) -> list[State | None]:
        """Play the actions.

        Args:
            state: a frame of MiniGrid.
            actions: in the words of the benchmark.

        Raises:
            ValueError: the state is no frame of MiniGrid, or an action is none of its actions.
        """
        for action in actions:
            _check_action(action)
        env = _env(_scene(state), _held(actions))
        found: list[State | None] = []
        for action in actions:
            ended = bool(found) and found[-1] is None
            found.append(render(scene_of(env)) if not ended and _play(env, action) else None)
        return found

    def same(self, one: State, other: State) -> bool:
        """Compare frames cell by cell, as the benchmark's exact match does; a larger one is resized to the smaller."""
        if isinstance(one, str) or isinstance(other, str):
            return False
        grid = min(grid_of(one), grid_of(other))
        return grid >= SMALLEST and np.array_equal(*read([resized(one, grid), resized(other, grid)]))


def _scene(state: State) -> Scene:
    if isinstance(state, Image.Image) and SMALLEST <= grid_of(state) <= LARGEST:
        (scene,) = read([state])
        if sum(bool(CELLS[cell].facing) for cell in scene.flat) == 1 and render(scene).tobytes() == state.tobytes():
            return scene
    raise ValueError(
        f"the state is no frame of MiniGrid: a square of {SMALLEST} to {LARGEST} cells of {TILE} pixels, with one agent"
    )


def _check_action(action: str) -> None:
    verb, _, thing = action.partition(" the ")
    if action not in _MOVES and thing not in _VERBS.get(verb, ()):
        known = [*_MOVES, *(f"{verb} the {thing}" for verb, things in _VERBS.items() for thing in things)]
        raise ValueError(
            f"{action!r} is no action of MiniGrid ({', '.join(_MOVES)}, {', '.join(_VERBS)} 'the red key' and the "
            f"like){nearest(action, known)}"
        )


def _held(actions: Sequence[str]) -> Cell | None:
    """Choose what the agent must carry at the start for the first action that needs its hand."""
    for action in actions:
        verb, _, thing = action.partition(" the ")
        colour, _, kind = thing.partition(" ")
        if verb == "pick up":
            return None
        if verb in ("drop", "unlock"):
            return Cell("key" if verb == "unlock" else kind, colour)
    return None


def _env(scene: Scene, held: Cell | None) -> Any:
    from minigrid.envs import EmptyEnv

    env: Any = EmptyEnv(size=len(scene))
    env.gen_obs = dict  # the agent's partial view is not used
    env.reset(seed=0)
    for (row, column), index in np.ndenumerate(scene):
        cell = CELLS[index]
        env.grid.set(column, row, thing_of(cell))
        if cell.facing:
            env.agent_pos, env.agent_dir = (column, row), FACINGS.index(cell.facing)
    env.carrying = None if held is None else thing_of(held)
    return env


def _play(env: Any, action: str) -> bool:
    """Take an action if it can happen; False where the simulator cannot go on."""
    from minigrid.minigrid_env import MiniGridEnv

    x, y = (int(value) for value in env.front_pos)
    last = env.width - 1
    if not (0 <= x <= last and 0 <= y <= last):
        return False
    front, held, actions = env.grid.get(x, y), env.carrying, env.actions
    verb, _, thing = action.partition(" the ")
    colour, _, kind = thing.partition(" ")
    ahead = front is not None and (front.color, front.type) == (colour, kind)
    if verb == "move forward" and (front is None or front.can_overlap()):
        if not (0 < x < last and 0 < y < last) or (front is not None and front.type == "lava"):
            return False
        step = actions.forward
    elif verb in ("turn left", "turn right"):
        step = actions.left if verb == "turn left" else actions.right
    elif verb == "pick up" and ahead and held is None:
        step = actions.pickup
    elif verb == "drop" and front is None and held is not None and (held.color, held.type) == (colour, kind):
        step = actions.drop
    elif kind == "door" and ahead and verb == ("close" if front.is_open else "unlock" if front.is_locked else "open"):
        if verb == "unlock" and (held is None or (held.color, held.type) != (colour, "key")):
            return True
        step = actions.toggle
    else:
        return True  # it cannot happen, and nothing changes
    MiniGridEnv.step(env, step)
    return True
