"""Transitions of the real MiniGrid simulator, split so that held-out scenes occur in no other split.

Only the dynamics of the world matter here, not a task's mission and end. So steps use the simulator's common
dynamics without the task's own rules (Fetch, for one, ends at the first object that is picked up). What the agent
carries is not in the frame; the action names it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from rich.progress import Progress

from swirl_lightning.benchmarks.minigrid.tiles import (
    CELLS,
    COLOURS,
    FACINGS,
    GRID,
    HELD_OUT,
    INDEX,
    OBJECTS,
    SPLITS,
    Cell,
    Scene,
    render,
    require_minigrid,
    split_of,
)
from swirl_lightning.benchmarks.shares import check_shares, quotas
from swirl_lightning.engine.ranges import check_ranges
from swirl_lightning.transition import Transition

SHARES = {
    "turn left": 0.13,
    "turn right": 0.13,
    "move forward": 0.22,
    "pick up": 0.14,
    "drop": 0.14,
    "open": 0.09,
    "close": 0.08,
    "unlock": 0.07,
}
"""Share of each kind of action in the transitions of `generate`."""

_MOVES = frozenset(("turn left", "turn right", "move forward", "pick up", "drop"))
_DOORS = frozenset(("open", "close"))


class Family(NamedTuple):
    """Kind of environment.

    Attributes:
        env: class in `minigrid.envs`.
        options: its arguments beside the size.
        extras: the most objects scattered beyond the family's own; without them some families have
            a handful of layouts only, too few to hold any out.
        kinds: the kinds of action that can happen in it.
    """

    env: str
    options: dict[str, Any]
    extras: int
    kinds: frozenset[str]


FAMILIES = {
    "empty": Family("EmptyEnv", {"agent_start_pos": None}, 3, _MOVES),
    "doorkey": Family("DoorKeyEnv", {}, 2, _MOVES | _DOORS | {"unlock"}),
    "fetch": Family("FetchEnv", {"numObjs": 2}, 1, _MOVES),
    "gotodoor": Family("GoToDoorEnv", {}, 2, _MOVES | _DOORS),
    "gotoobject": Family("GoToObjectEnv", {"numObjs": 2}, 0, _MOVES),
    "putnear": Family("PutNearEnv", {"numObjs": 2}, 0, _MOVES),
    "lavagap": Family("LavaGapEnv", {}, 2, _MOVES),
}

_INDEX = {(cell.kind, cell.colour, cell.door): index for cell, index in INDEX.items() if not cell.facing}
_FLOOR = INDEX[Cell("floor")]

SMALLEST, LARGEST = 6, 16
"""Cells along a side of a frame. In fewer, PutNear may look for ever for a place of its second thing."""
_EPISODE_STEPS = 60
_PER_EPISODE = 2  # steps of one kind of action, so that no single episode fills a split
_STALLED = 5000  # number of episodes in a row without a new transition


THINGS = tuple(f"{colour} {kind}" for kind in OBJECTS for colour in COLOURS)
"""Things that an action can name beside doors: ``red key`` and 17 others."""


def generate(
    split: str,
    n: int,
    *,
    seed: int = 0,
    families: Sequence[str] = tuple(FAMILIES),
    min_gap: int = 1,
    max_gap: int = 1,
    shares: Mapping[str, float] = SHARES,
    never_named: Sequence[str] = (),
    grid: int = GRID,
    balls: int = 0,
    moving: bool = False,
) -> list[Transition]:
    """Generate transitions of one split, in random order; the same arguments give the same bytes.

    Every frame changes, no (before, action) comes twice, kinds of action come in the proportions of
    `shares`. A layout that a held-out split may show before a step is in no other split, neither
    before nor after.

    Args:
        split: ``base``, ``warmup``, ``state_only``, ``validation`` or ``test``.
        n: number of transitions.
        seed: of the episodes; splits draw from different streams.
        families: names from `FAMILIES`.
        min_gap: fewest steps between before and after.
        max_gap: most steps between before and after, as between two frames of a video; the number is drawn
            uniformly. Above 1, transitions have no action, and `shares` counts the first step.
        shares: proportions of the kinds of action; kinds that are left out do not occur.
        never_named: things of `THINGS` that no action names.
        grid: cells along a side of a frame; 6 as the shipped base has seen them.
        balls: balls that each scene has beside its family's things, where the agent can come; fewer where no cell
            is free.
        moving: after each step, each of these balls moves by itself, as the obstacles of MiniGrid's
            DynamicObstacles: to one of the free cells around it. Transitions then have no action, which would not
            explain them.

    Raises:
        ImportError: the simulator is not installed.
        ValueError: an argument as `check` refuses it, or the families cannot give that many.
    """
    check(split, n, families, min_gap, max_gap, shares, never_named, grid, balls)
    rng = np.random.default_rng([seed, list(SPLITS).index(split)])
    envs = {name: _build(name, grid) for name in families}
    possible = _kinds(families)
    missing = quotas(n, {kind: share for kind, share in shares.items() if kind in possible})
    others = set(HELD_OUT) - {split}
    seen: set[tuple[bytes, str]] = set()
    found: list[tuple[Scene, str, Scene, dict[str, Any]]] = []
    stalled = episode = 0
    with Progress(transient=True, disable=n < 3000) as progress:
        task = progress.add_task(f"MiniGrid {split}", total=n)
        while len(found) < n:
            useful = [name for name in families if any(missing[kind] for kind in FAMILIES[name].kinds)]
            name = useful[episode % len(useful)]
            taken: Counter[str] = Counter()

            def wanted(kind: str, taken: Counter[str] = taken) -> bool:
                return missing[kind] > 0 and taken[kind] < _PER_EPISODE

            for before, action, after in _episode(
                envs[name], name, rng, wanted, min_gap, max_gap, balls=balls, moving=moving
            ):
                kind, _, thing = action.partition(" the ")
                key = (before.tobytes(), action)
                if thing in never_named:
                    continue
                if not wanted(kind) or key in seen or split_of(before) != split or split_of(after) in others:
                    continue
                seen.add(key)
                missing[kind] -= 1
                taken[kind] += 1
                found.append((before, action, after, {"family": name, "kind": kind, "episode": episode}))
            episode += 1
            stalled = 0 if taken else stalled + 1
            if stalled == _STALLED:
                raise ValueError(
                    f"families {list(families)} gave {len(found)} distinct transitions for split {split!r}, "
                    f"{n} were asked for (short of: {dict(+missing)}); add families or ask for fewer"
                )
            progress.update(task, completed=len(found))
    order = rng.permutation(n)
    explained = max_gap == 1 and not (moving and balls)
    return [
        Transition(render(before), render(after), action if explained else None, id=f"{split}-{rank:05d}", meta=meta)
        for rank, (before, action, after, meta) in enumerate(found[index] for index in order)
    ]


def check(
    split: str,
    n: int,
    families: Sequence[str],
    min_gap: int = 1,
    max_gap: int = 1,
    shares: Mapping[str, float] = SHARES,
    never_named: Sequence[str] = (),
    grid: int = GRID,
    balls: int = 0,
) -> None:
    """Raise the errors of `generate` for these arguments, without simulating."""
    if split not in SPLITS:
        raise ValueError(f"unknown MiniGrid split {split!r}; choose from {list(SPLITS)}")
    check_ranges("data", {f"{split}_size": n}, **{f"{split}_size": "whole [0, 10000000]"})
    unknown = [name for name in families if name not in FAMILIES]
    if unknown or not families:
        raise ValueError(f"unknown MiniGrid families {unknown}; choose one or more of {list(FAMILIES)}")
    numbers = {"min_gap": min_gap, "max_gap": max_gap, "grid": grid, "moving_balls": balls}
    ranges = {"grid": f"whole [{SMALLEST}, {LARGEST}]", "moving_balls": "whole [0, 10]"}
    check_ranges("data", numbers, min_gap="whole [1, inf)", max_gap="whole [1, inf)", **ranges)
    if min_gap > max_gap:
        raise ValueError(
            f"two MiniGrid frames are at least min_gap steps apart, and at most max_gap: got min_gap {min_gap} and "
            f"max_gap {max_gap}"
        )
    possible = _kinds(families)
    check_shares("MiniGrid", shares, SHARES)
    if not any(share > 0 for kind, share in shares.items() if kind in possible):
        raise ValueError(f"no kind of action of {dict(shares)} happens in the MiniGrid families {list(families)}")
    if foreign := sorted(set(never_named) - set(THINGS)):
        raise ValueError(f"unknown MiniGrid things {foreign}; choose from {list(THINGS)}")
    require_minigrid()


def kind_of(action: str) -> str:
    """Return the kind of an action: ``pick up`` of ``pick up the red key``."""
    return action.split(" the ")[0]


def _kinds(families: Sequence[str]) -> frozenset[str]:
    return frozenset().union(*(FAMILIES[name].kinds for name in families))


def _build(name: str, grid: int = GRID) -> Any:
    import minigrid.envs

    family = FAMILIES[name]
    env = getattr(minigrid.envs, family.env)(size=grid, **family.options)
    env.gen_obs = dict  # the agent's partial view, most of the cost of a step, is not used here
    return env


def _vary(env: Any, name: str, balls: int) -> list[Any]:
    """Change a fresh grid, so that a family has many layouts; all draws come from the env's own seed.

    Returns the added balls.
    """
    from minigrid.core import world_object

    rng = env.np_random
    if name == "doorkey":  # always yellow otherwise
        colour = COLOURS[rng.integers(len(COLOURS))]
        for thing in env.grid.grid:
            if thing is not None and thing.type in ("door", "key"):
                thing.color = colour
    if name == "lavagap":  # always the same corner otherwise
        env.place_agent()
    for _ in range(rng.integers(FAMILIES[name].extras + 1)):
        make = getattr(world_object, OBJECTS[rng.integers(len(OBJECTS))].title())
        env.place_obj(make(COLOURS[rng.integers(len(COLOURS))]))
    if rng.random() < 0.4:  # start with something in hand, or doors are seldom unlocked
        held = ("key",) if name == "doorkey" else OBJECTS
        places = [i for i, thing in enumerate(env.grid.grid) if thing is not None and thing.type in held]
        if places:
            place = places[rng.integers(len(places))]
            env.carrying, env.grid.grid[place] = env.grid.grid[place], None
    inside = _reached(env)
    added = []
    for _ in range(balls):
        free = [place for place in inside if env.grid.get(*place) is None]
        if free:
            ball = world_object.Ball(COLOURS[rng.integers(len(COLOURS))])
            env.put_obj(ball, *free[rng.integers(len(free))])
            added.append(ball)
    return added


def _reached(env: Any) -> list[tuple[int, int]]:
    """Places (column, row) that the agent can come to from its own, were doors open and things out of its way."""
    start = (int(env.agent_pos[0]), int(env.agent_pos[1]))
    found, left = {start}, [start]
    while left:
        column, row = left.pop()
        for x, y in ((column + 1, row), (column - 1, row), (column, row + 1), (column, row - 1)):
            if (x, y) in found or not (0 < x < env.width - 1 and 0 < y < env.height - 1):  # it never goes on the rim
                continue
            thing = env.grid.get(x, y)
            if thing is None or thing.type not in ("wall", "lava"):
                found.add((x, y))
                left.append((x, y))
    return sorted(found - {start})


def _roll(env: Any, balls: Sequence[Any]) -> None:
    """Move each ball that is not carried to one of the free cells around it, if there is one."""
    for ball in balls:
        if ball is env.carrying:
            continue
        column, row = (int(value) for value in ball.cur_pos)
        around = [(x, y) for x in range(column - 1, column + 2) for y in range(row - 1, row + 2)]
        free = [(x, y) for x, y in around if _inside(env, x, y) and _is_free(env, x, y)]
        if free:
            env.grid.set(column, row, None)
            env.put_obj(ball, *free[env.np_random.integers(len(free))])


def _inside(env: Any, column: int, row: int) -> bool:
    return bool(0 <= column < env.width and 0 <= row < env.height)


def _is_free(env: Any, column: int, row: int) -> bool:
    return env.grid.get(column, row) is None and (column, row) != tuple(env.agent_pos)


def _episode(
    env: Any,
    name: str,
    rng: np.random.Generator,
    wanted: Callable[[str], bool],
    min_gap: int,
    max_gap: int,
    *,
    balls: int = 0,
    moving: bool = False,
) -> Iterator[tuple[Scene, str, Scene]]:
    """Play an episode of the behaviour policy; yields steps of the wanted kinds, ``min_gap`` to ``max_gap`` in one."""
    from minigrid.minigrid_env import MiniGridEnv

    env.reset(seed=int(rng.integers(2**31)))
    added = _vary(env, name, balls)
    env.max_steps = _EPISODE_STEPS
    waiting: list[tuple[int, Scene, str]] = []  # at which step the frame after is due, frame before, first action
    for time in range(1, _EPISODE_STEPS + 1):
        step, action = _choose(env, rng)
        if wanted(kind_of(action)):
            later = int(rng.integers(min_gap - 1, max_gap)) if max_gap > 1 else 0
            waiting.append((time + later, scene_of(env), action))
        _, _, terminated, truncated, _ = MiniGridEnv.step(env, step)
        if moving:
            _roll(env, added)
        for _, before, first in [row for row in waiting if row[0] == time]:
            if not np.array_equal(before, after := scene_of(env)):
                yield before, first, after
        waiting = [row for row in waiting if row[0] > time]
        if terminated or truncated:
            return


def scene_of(env: Any) -> Scene:
    """Return the scene of the simulator."""
    cells = [_FLOOR if thing is None else _INDEX[_key(thing)] for thing in env.grid.grid]
    column, row = env.agent_pos
    place = int(row) * env.width + int(column)
    cells[place] = INDEX[CELLS[cells[place]]._replace(facing=FACINGS[env.agent_dir])]
    return np.array(cells, dtype=np.uint8).reshape(env.height, env.width)


def _key(thing: Any) -> tuple[str, str, str]:
    if thing.type == "door":
        return "door", thing.color, "open" if thing.is_open else "locked" if thing.is_locked else "closed"
    return thing.type, thing.color if thing.type in OBJECTS else "", ""


def _choose(env: Any, rng: np.random.Generator) -> tuple[int, str]:
    """Draw an action of the behaviour policy, which prefers things: the simulator's action and its words.

    It does not step into lava, which ends an episode, nor on the rim of the grid, beyond which the
    simulator cannot look; and it opens no box, which a frame cannot tell from picking it up.
    """
    actions, (ahead, aside) = env.actions, rng.random(2)
    dx, dy = env.dir_vec.tolist()
    column, row = (int(value) for value in env.agent_pos)
    x, y = column + dx, row + dy
    front = env.grid.get(x, y)
    if front is None and env.carrying is not None and ahead < 0.06:
        return actions.drop, f"drop the {env.carrying.color} {env.carrying.type}"
    if ahead < 0.6 and (verb := _use(front, env.carrying)):
        action = actions.pickup if verb == "pick up" else actions.toggle
        return action, f"{verb} the {front.color} {front.type}"
    left, right = (env.grid.get(column + sign * dy, row - sign * dx) for sign in (1, -1))
    if aside < 0.4 and bool(_use(left, env.carrying)) != bool(_use(right, env.carrying)):
        turn_left = bool(_use(left, env.carrying))
    else:
        free = front is None or (front.can_overlap() and front.type != "lava")
        inside = 0 < x < env.width - 1 and 0 < y < env.height - 1
        if free and inside and aside < 0.8:
            return actions.forward, "move forward"
        turn_left = rng.random() < 0.5
    return (actions.left, "turn left") if turn_left else (actions.right, "turn right")


def _use(thing: Any, carrying: Any) -> str:
    """Return the action for the thing that the agent faces; empty if there is none."""
    if thing is None:
        return ""
    if thing.type in OBJECTS:
        return "" if carrying else "pick up"
    if thing.type != "door":
        return ""
    if thing.is_locked:
        return "unlock" if carrying and (carrying.type, carrying.color) == ("key", thing.color) else ""
    return "close" if thing.is_open else "open"
