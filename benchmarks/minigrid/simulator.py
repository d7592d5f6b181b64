"""Transitions of the real MiniGrid simulator, split so that held-out scenes are never seen elsewhere.

A task's mission and its end are of no interest here, only how the world moves, so steps go through
the simulator's common dynamics and not through the task's own rules on top (Fetch, for one, ends at
the first object that is picked up). What the agent carries is not in the frame; the action says it.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from rich.progress import Progress

from swirl_lightning.benchmarks.minigrid.tiles import (
    COLOURS,
    FACINGS,
    GRID,
    INDEX,
    OBJECTS,
    Cell,
    Scene,
    layout,
    render,
    require_minigrid,
)
from swirl_lightning.transition import Transition

SPLITS = {"base": 30, "warmup": 15, "state_only": 25, "validation": 15, "test": 15}
"""Percent of all layouts that belong to each split."""
HELD_OUT = ("validation", "test")

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
"""Share of each kind of action in what `generate` returns."""

_MOVES = frozenset(("turn left", "turn right", "move forward", "pick up", "drop"))
_DOORS = frozenset(("open", "close"))


class Family(NamedTuple):
    """A kind of environment.

    Attributes:
        env: class in `minigrid.envs`.
        options: its arguments.
        extras: the most objects scattered beyond the family's own; without them some families have
            a handful of layouts only, too few to hold any out.
        kinds: the kinds of action that can happen in it.
    """

    env: str
    options: dict[str, Any]
    extras: int
    kinds: frozenset[str]


FAMILIES = {
    "empty": Family("EmptyEnv", {"size": GRID, "agent_start_pos": None}, 3, _MOVES),
    "doorkey": Family("DoorKeyEnv", {"size": GRID}, 2, _MOVES | _DOORS | {"unlock"}),
    "fetch": Family("FetchEnv", {"size": GRID, "numObjs": 2}, 1, _MOVES),
    "gotodoor": Family("GoToDoorEnv", {"size": GRID}, 2, _MOVES | _DOORS),
    "gotoobject": Family("GoToObjectEnv", {"size": GRID, "numObjs": 2}, 0, _MOVES),
    "putnear": Family("PutNearEnv", {"size": GRID, "numObjs": 2}, 0, _MOVES),
    "lavagap": Family("LavaGapEnv", {"size": GRID}, 2, _MOVES),
}

_EPISODE_STEPS = 60
_PER_EPISODE = 2  # of one kind of action, so that no single episode fills a split
_STALLED = 5000  # episodes in a row that gave nothing new


def split_of(scene: Scene) -> str:
    """The one split in which this scene's layout may be the state before; the same for every seed.

    The layout leaves out the agent and whether doors are open, so a held-out layout is unseen at
    every position of the agent.
    """
    digest = hashlib.blake2b(layout(scene).tobytes(), digest_size=8).digest()
    percent = int.from_bytes(digest, "big") % 100
    for split, share in SPLITS.items():
        percent -= share
        if percent < 0:
            return split
    raise AssertionError("the shares of SPLITS add up to 100")


def generate(split: str, n: int, *, seed: int = 0, families: Sequence[str] = tuple(FAMILIES)) -> list[Transition]:
    """Labelled transitions of one split, in random order; the same arguments give the same bytes.

    Every frame changes, no (before, action) comes twice, kinds of action come in the proportions of
    `SHARES`. A layout that a held-out split may show before a step is in no other split, neither
    before nor after.

    Args:
        split: ``base``, ``warmup``, ``state_only``, ``validation`` or ``test``.
        n: how many.
        seed: of the episodes; splits draw from different streams.
        families: names from `FAMILIES`.

    Raises:
        ImportError: the simulator is not installed.
        ValueError: unknown split or family, or the families cannot give that many.
    """
    check(split, n, families)
    rng = np.random.default_rng([seed, list(SPLITS).index(split)])
    envs = {name: _build(name) for name in families}
    missing = _quotas(n, frozenset().union(*(FAMILIES[name].kinds for name in families)))
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
            for before, action, after in _episode(envs[name], name, rng):
                kind = kind_of(action)
                if not missing[kind] or taken[kind] == _PER_EPISODE:
                    continue
                key = (before.tobytes(), action)
                if key in seen or split_of(before) != split or split_of(after) in others:
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
    return [
        Transition(render(before), render(after), action, id=f"{split}-{rank:05d}", meta=meta)
        for rank, (before, action, after, meta) in enumerate(found[index] for index in order)
    ]


def check(split: str, n: int, families: Sequence[str]) -> None:
    """Raises what `generate` would raise for these arguments, without simulating."""
    if split not in SPLITS:
        raise ValueError(f"unknown MiniGrid split {split!r}; choose from {list(SPLITS)}")
    if n < 0:
        raise ValueError(f"the size of MiniGrid split {split!r} must not be negative, got {n}")
    unknown = [name for name in families if name not in FAMILIES]
    if unknown or not families:
        raise ValueError(f"unknown MiniGrid families {unknown}; choose one or more of {list(FAMILIES)}")
    require_minigrid()


def kind_of(action: str) -> str:
    """``pick up`` of ``pick up the red key``."""
    return action.split(" the ")[0]


def _quotas(n: int, kinds: frozenset[str]) -> Counter[str]:
    """How many of each kind, n in all (largest remainders)."""
    total = sum(SHARES[kind] for kind in kinds)
    exact = {kind: n * share / total for kind, share in SHARES.items() if kind in kinds}
    quotas = Counter({kind: int(value) for kind, value in exact.items()})
    by_remainder = sorted(exact, key=lambda kind: quotas[kind] - exact[kind])
    quotas.update(by_remainder[: n - quotas.total()])
    return quotas


def _build(name: str) -> Any:
    import minigrid.envs

    family = FAMILIES[name]
    env = getattr(minigrid.envs, family.env)(**family.options)
    env.gen_obs = dict  # the agent's partial view, most of the cost of a step, is not used here
    return env


def _vary(env: Any, name: str) -> None:
    """Changes to a fresh grid that give a family many layouts; all draws come from the env's own seed."""
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
    if rng.random() < 0.3:  # start with something in hand, or doors are seldom unlocked
        places = [i for i, thing in enumerate(env.grid.grid) if thing is not None and thing.can_pickup()]
        if places:
            place = places[rng.integers(len(places))]
            env.carrying, env.grid.grid[place] = env.grid.grid[place], None


def _episode(env: Any, name: str, rng: np.random.Generator) -> Iterator[tuple[Scene, str, Scene]]:
    """One episode of the behaviour policy; yields its steps."""
    from minigrid.minigrid_env import MiniGridEnv

    env.reset(seed=int(rng.integers(2**31)))
    _vary(env, name)
    env.max_steps = _EPISODE_STEPS
    before = scene_of(env)
    ended = False
    while not ended:
        step, action = _choose(env, rng)
        _, _, terminated, truncated, _ = MiniGridEnv.step(env, step)
        after = scene_of(env)
        if not np.array_equal(before, after):
            yield before, action, after
        before, ended = after, terminated or truncated


def scene_of(env: Any) -> Scene:
    """The scene that the simulator is in."""
    cells = []
    for thing in env.grid.grid:
        if thing is None:
            cells.append(Cell("floor"))
        elif thing.type == "door":
            state = "open" if thing.is_open else "locked" if thing.is_locked else "closed"
            cells.append(Cell("door", thing.color, state))
        else:
            cells.append(Cell(thing.type, thing.color if thing.type in OBJECTS else ""))
    column, row = env.agent_pos
    place = int(row) * GRID + int(column)
    cells[place] = cells[place]._replace(facing=FACINGS[env.agent_dir])
    return np.array([INDEX[cell] for cell in cells], dtype=np.uint8).reshape(GRID, GRID)


def _choose(env: Any, rng: np.random.Generator) -> tuple[int, str]:
    """The behaviour policy, random and fond of things: the simulator's action and its words.

    It does not step into lava, which ends an episode, nor on the rim of the grid, beyond which the
    simulator cannot look; and it opens no box, which a frame cannot tell from picking it up.
    """
    actions, draw = env.actions, rng.random()
    column, row = (int(value) for value in env.front_pos)
    front = env.grid.get(column, row)
    if front is not None and front.type in OBJECTS and env.carrying is None and draw < 0.5:
        return actions.pickup, f"pick up the {front.color} {front.type}"
    if front is None and env.carrying is not None and draw < 0.15:
        return actions.drop, f"drop the {env.carrying.color} {env.carrying.type}"
    if front is not None and front.type == "door" and draw < 0.6:
        held = env.carrying
        fits = held is not None and (held.type, held.color) == ("key", front.color)
        if front.is_locked and fits:
            return actions.toggle, f"unlock the {front.color} door"
        if not front.is_locked:
            return actions.toggle, f"{'close' if front.is_open else 'open'} the {front.color} door"
    free = front is None or (front.can_overlap() and front.type != "lava")
    inside = 0 < column < GRID - 1 and 0 < row < GRID - 1
    if free and inside and rng.random() < 0.6:
        return actions.forward, "move forward"
    return (actions.left, "turn left") if rng.random() < 0.5 else (actions.right, "turn right")
