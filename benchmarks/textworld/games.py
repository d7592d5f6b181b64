"""TextWorld games made from seeds and played on the engine's logic, without the Inform interpreter."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

from swirl_lightning.benchmarks.textworld.facts import Facts, visible
from swirl_lightning.engine.ranges import check_ranges

KINDS = ("go", "open", "close", "unlock", "lock", "take", "drop", "put", "insert", "eat")
"""Kinds of action that change what is seen; ``look``, ``inventory`` and ``examine`` are never played."""


@dataclass(frozen=True)
class World:
    """Size of the games, and the choice of the actions that are played.

    Attributes:
        rooms: of a game.
        objects: of a game, besides rooms and doors; a quest that needs more has more.
        quest_length: actions of the shortest way to win.
        steps: actions played in a game, fewer if it is won before.
        on_path: chance of a step to follow the shortest way to win; the others are random.
        moves: chance of a random step to go to another room. What the other room holds cannot be predicted,
            so a world model learns little from it.

    Raises:
        ValueError: a number is too small, or a chance is not between 0 and 1.
    """

    rooms: int = 2
    objects: int = 14
    quest_length: int = 6
    steps: int = 16
    on_path: float = 0.4
    moves: float = 0.1

    def __post_init__(self) -> None:
        least = dict.fromkeys(("rooms", "objects", "quest_length", "steps"), "whole [1, 1000]")
        check_ranges("data", vars(self), on_path="[0, 1]", moves="[0, 1]", **least)


class Step(NamedTuple):
    """Step of a game: one action that it carried out.

    Attributes:
        before: facts that were seen.
        action: the command, as a player types it.
        kind: one of `KINDS`.
        on_path: True if it follows the shortest way to win.
        after: facts that are seen then; never the same as ``before``.
    """

    before: Facts
    action: str
    kind: str
    on_path: bool
    after: Facts


def require_textworld() -> None:
    """Check that the engine is installed.

    Raises:
        ImportError: it is not.
    """
    try:
        import textworld  # noqa: F401
    except ImportError as error:
        raise ImportError("TextWorld games need the engine: pip install 'swirl-lightning[textworld]'") from error


def play(seed: int, world: World) -> Iterator[Step]:
    """Play one game; the same seed and world give the same steps in every process.

    A random step draws a kind of action from those that are possible, then a command of that kind.

    Args:
        seed: of the game and of the play, from 0 to 2**32 - 1.
        world: as above.

    Raises:
        ImportError: the engine is not installed.
    """
    require_textworld()
    from textworld.generator.game import GameProgression
    from textworld.generator.inform7 import Inform7Game

    game = _make(seed, world)
    names = Inform7Game(game)
    progress = GameProgression(game)
    draw = random.Random(seed)
    facts = _facts(progress, names)
    for _ in range(world.steps):
        path = list(progress.winning_policy or [])
        on_path = bool(path) and path[0].name.split("/")[0] in KINDS and draw.random() < world.on_path
        action = path[0] if on_path else _at_random(progress.valid_actions, names, world.moves, draw)
        if action is None:
            return
        (command,) = names.gen_commands_from_actions([action])
        progress.update(action)
        before, facts = facts, _facts(progress, names)
        if facts != before:
            yield Step(before, command, action.name.split("/")[0], on_path, facts)
        if progress.completed:
            return


def _make(seed: int, world: World) -> Any:
    from textworld import GameOptions
    from textworld.generator import make_game

    options = GameOptions()
    options.kb = _knowledge()
    options.seeds = seed
    options.nb_rooms, options.nb_objects, options.quest_length = world.rooms, world.objects, world.quest_length
    return make_game(options)


@cache
def _knowledge() -> Any:
    """Parse the rules of the world, once: that takes most of the time of making a game."""
    from textworld.generator.data import KnowledgeBase

    return KnowledgeBase.load()


def _at_random(actions: list[Any], names: Any, moves: float, draw: random.Random) -> Any:
    kinds: dict[str, dict[str, Any]] = {}
    for action, command in zip(actions, names.gen_commands_from_actions(actions), strict=True):
        if (kind := action.name.split("/")[0]) in KINDS:
            kinds.setdefault(kind, {})[command] = action
    if not kinds:
        return None
    others = sorted(kinds.keys() - {"go"})
    move = "go" in kinds and (not others or draw.random() < moves)
    commands = kinds["go" if move else draw.choice(others)]
    return commands[draw.choice(sorted(commands))]


def _facts(progress: Any, names: Any) -> Facts:
    return visible(names.get_human_readable_fact(fact) for fact in progress.state.facts)
