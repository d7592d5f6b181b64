"""Goals in MiniGrid, read off a frame: to reach the goal square, fetch a thing, open a door."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from swirl_lightning.benchmarks.minigrid.tiles import CELLS, FACINGS, OBJECTS, Cell, Scene, grid_of, read
from swirl_lightning.transition import State

Kind = Literal["reach", "fetch", "open"]
KINDS: tuple[Kind, ...] = get_args(Kind)

_AHEAD = dict(zip(FACINGS, ((1, 0), (0, 1), (-1, 0), (0, -1)), strict=True))  # columns and rows


@dataclass(frozen=True)
class MiniGridGoal:
    """A goal with the actions that may serve it.

    Attributes:
        kind: ``reach``, ``fetch`` or ``open``.
        thing: ``goal`` to reach, ``red key`` or another thing to fetch, ``red door`` to open.
    """

    kind: Kind
    thing: str

    def actions(self, state: State) -> list[str]:
        """Return the actions that can happen in a frame: turns, a free step, the goal's own before its thing."""
        found = _agent(state)
        if found is None:
            return []
        scene, (column, row), facing = found
        x, y = column + _AHEAD[facing][0], row + _AHEAD[facing][1]
        actions = ["turn left", "turn right"]
        last = len(scene) - 1
        if not (0 <= x <= last and 0 <= y <= last):
            return actions
        front = CELLS[scene[y, x]]
        if self.kind != "reach" and _wanted(self, front):
            actions.append(f"{'pick up' if self.kind == 'fetch' else 'open'} the {self.thing}")
        inside = 0 < x < last and 0 < y < last  # beyond the rim MiniGrid cannot look
        if inside and (front.kind in ("floor", "goal") or front.door == "open"):
            actions.append("move forward")
        return actions

    def distance(self, state: State) -> float:
        """Return the steps to the goal, walls aside, and one more while a thing to fetch or open is not right ahead.

        It is 0 where the goal is reached, and infinite where a frame shows not one agent, or nothing of what is to be
        reached or opened.
        """
        found = _agent(state)
        if found is None:
            return math.inf
        scene, (column, row), facing = found
        if self.kind == "reach" and CELLS[scene[row, column]].kind == "goal":
            return 0
        places = [(x, y) for (y, x), index in np.ndenumerate(scene) if _wanted(self, CELLS[index])]
        if not places:
            opened = any(
                (CELLS[index].kind, CELLS[index].door) == ("door", "open")
                and f"{CELLS[index].colour} door" == self.thing
                for index in scene.flat
            )
            return 0 if self.kind == "fetch" or (self.kind == "open" and opened) else math.inf
        ahead = (column + _AHEAD[facing][0], row + _AHEAD[facing][1])
        aside = self.kind != "reach" and ahead not in places
        return min(abs(column - x) + abs(row - y) for x, y in places) + aside


def goals_in(state: State) -> list[MiniGridGoal]:
    """Return the goals that a frame has, each meaning one thing; locked doors, which need a key, are none."""
    found = _agent(state)
    if found is None:
        return []
    cells = [CELLS[index] for index in found[0].flat]
    doors = [Cell("door", cell.colour, cell.door) for cell in cells if cell.kind == "door"]
    counts = Counter((cell.kind, cell.colour) for cell in cells if cell.kind in (*OBJECTS, "door", "goal"))
    goals = []
    for (kind, colour), count in sorted(counts.items()):
        if count > 1:
            continue
        if kind == "goal":
            goals.append(MiniGridGoal("reach", "goal"))
        elif kind in OBJECTS:
            goals.append(MiniGridGoal("fetch", f"{colour} {kind}"))
        elif Cell("door", colour, "closed") in doors:
            goals.append(MiniGridGoal("open", f"{colour} door"))
    return [goal for goal in goals if goal.distance(state) > 0]


def _wanted(goal: MiniGridGoal, cell: Cell) -> bool:
    if goal.kind == "reach":
        return cell.kind == "goal"
    if goal.kind == "open":
        return cell.door == "closed" and f"{cell.colour} {cell.kind}" == goal.thing
    return cell.kind in OBJECTS and f"{cell.colour} {cell.kind}" == goal.thing


def _agent(state: State) -> tuple[Scene, tuple[int, int], str] | None:
    """Scene of a frame with the agent's column, row and facing; None for a frame without one agent, or for none."""
    if isinstance(state, str) or not grid_of(state):
        return None
    (scene,) = read([state])
    places = [(place, CELLS[index].facing) for place, index in np.ndenumerate(scene) if CELLS[index].facing]
    if len(places) != 1:
        return None
    (row, column), facing = places[0]
    return scene, (column, row), facing
