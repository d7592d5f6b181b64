"""Facts of TextWorld: written as sentences, and read from them."""

from __future__ import annotations

import random

import pytest

from support.suites.textworld import needs_engine
from swirl_lightning.benchmarks.textworld import World, games, read, visible, write


def seen_by_the_engine(game, state) -> dict[str, str]:
    """Facts of the player's room and hands, from the engine's own map of the world."""
    from textworld.generator.world import World as EngineWorld

    world, names = EngineWorld.from_facts(state.facts), {key: info.name for key, info in game.infos.items()}
    room = world.player_room

    def condition(thing) -> str:
        return next(fact.name for fact in thing.get_attributes() if fact.name in ("open", "closed", "locked"))

    found = {"you": names[room.id]}
    for way in room.exits:
        if way in room.doors:
            found[names[room.doors[way].id]] = f"{way}, {condition(room.doors[way])}"
        else:
            found[way] = "free"
    for thing in room.content:
        if thing.type in ("P", "d"):
            continue
        if thing.type == "c":
            found[names[thing.id]] = condition(thing)
            inside = thing.content if condition(thing) == "open" else []
            found |= {names[content.id]: f"in the {names[thing.id]}" for content in inside}
        elif thing.type == "s":
            found[names[thing.id]] = "here"
            found |= {names[content.id]: f"on the {names[thing.id]}" for content in thing.content}
        else:
            found[names[thing.id]] = "on the floor"
    return found | {names[thing.id]: "carried" for thing in world.inventory.content if thing.type != "P"}


@needs_engine
def test_texts_of_real_states_say_what_the_engine_says():
    from textworld.generator.game import GameProgression
    from textworld.generator.inform7 import Inform7Game

    states, doors, hidden = 0, 0, 0
    for seed in range(25):
        game = games._make(seed, World(rooms=1 + seed % 4, objects=8 + seed % 9, quest_length=4))
        names, progress, draw = Inform7Game(game), GameProgression(game), random.Random(seed)
        for _ in range(16):
            facts = read(write(visible(map(names.get_human_readable_fact, progress.state.facts))))
            expected = seen_by_the_engine(game, progress.state)
            assert facts == (expected, 0)
            states += 1
            doors += any(", " in value for value in expected.values())
            hidden += len(expected) < len(game.infos) - 2
            progress.update(draw.choice(progress.valid_actions))
    assert states == 400
    assert doors > 20
    assert hidden > 300


@needs_engine
def test_what_is_closed_or_elsewhere_is_not_seen():
    from textworld.logic import Proposition, Variable

    def fact(name: str, *things: str) -> Proposition:
        types = {"P": "P", "attic": "r", "cellar": "r", "chest": "c", "shelf": "s", "hatch": "d", "I": "I"}
        return Proposition(name, [Variable(thing, types.get(thing, "o")) for thing in things])

    world = [
        *(fact("at", thing, "attic") for thing in ("P", "chest", "shelf", "rug")),
        fact("at", "lamp", "cellar"),
        fact("closed", "chest"),
        fact("in", "coin", "chest"),
        fact("on", "cup", "shelf"),
        fact("in", "egg", "I"),
        fact("south_of", "cellar", "attic"),
        fact("north_of", "attic", "cellar"),
    ]
    free = [fact("free", "attic", "cellar"), fact("free", "cellar", "attic")]
    door = [fact("link", "attic", "hatch", "cellar"), fact("link", "cellar", "hatch", "attic"), fact("locked", "hatch")]
    things = (
        "The chest is closed. The shelf is here. The cup is on the shelf. The rug is on the floor. You carry the egg."
    )
    assert write(visible(world + free)) == f"You are in the attic. You can go south. {things}"
    assert write(visible(world + door)) == f"You are in the attic. The hatch to the south is locked. {things}"
    with pytest.raises(ValueError, match="cannot be told from their sentences"):
        visible([fact("at", "P", "attic"), fact("at", "coin. The end", "attic")])


@pytest.mark.parametrize(
    ("text", "facts", "unread"),
    [
        ("", {}, 0),
        ("You are in the attic", {"you": "attic"}, 0),
        ("You  are in\nthe attic.\nYou can go up.", {"you": "attic"}, 1),
        ("The box is open. The box is open.", {"box": "open"}, 0),
        ("The box is open. The box is closed. The box is open.", {"box": ""}, 0),
        ("The key to the north is on the floor.", {"key to the north": "on the floor"}, 0),
        ("the box is open. The box. is. You carry a pen.", {}, 4),
    ],
)
def test_reading(text, facts, unread):
    assert read(text) == (facts, unread)
