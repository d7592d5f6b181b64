"""Commands that a state of TextWorld allows, against its engine."""

from __future__ import annotations

import random

from support.suites.textworld import SMALL, needs_engine
from swirl_lightning.benchmarks.textworld import World, games
from swirl_lightning.benchmarks.textworld.commands import commands
from swirl_lightning.benchmarks.textworld.datamodule import TextWorld
from swirl_lightning.benchmarks.textworld.facts import read

STATE = (
    "You are in the attic. You can go north. The old hatch to the east is closed. The oak door to the west is open. "
    "The gate to the south is locked. The box is closed. The chest is open. The red hat is in the chest. The safe is "
    "locked. The desk is here. The pen is on the desk. The coin is on the floor. You carry the key to the box."
)


def test_commands_are_those_whose_outcome_is_seen():
    assert TextWorld().possible_actions(STATE) == [
        "open old hatch",
        "close oak door",
        "close chest",
        "take red hat from chest",
        "take pen from desk",
        "take coin",
        "drop key to the box",
        "insert key to the box into chest",
        "put key to the box on desk",
    ]
    assert commands(read("nonsense")[0]) == []


@needs_engine
def test_the_engine_allows_these_commands_and_no_others_of_their_kinds():
    from textworld.generator.game import GameProgression
    from textworld.generator.inform7 import Inform7Game

    draw, found = random.Random(0), set()
    for seed, world in enumerate([SMALL, World(rooms=1, objects=5, quest_length=2), World(rooms=3, objects=12)]):
        game = games._make(seed, world)
        names, progress = Inform7Game(game), GameProgression(game)
        for _ in range(12):
            valid = set(names.gen_commands_from_actions(progress.valid_actions))
            told = set(commands(games._facts(progress, names)))
            assert told <= valid
            assert not {c for c in valid - told if c.split()[0] in ("take", "drop", "put", "insert", "close")}
            found |= {command.split()[0] for command in told}
            progress.update(games._at_random(progress.valid_actions, names, 0.2, draw))
    assert found >= {"close", "take", "drop", "put", "insert"}
