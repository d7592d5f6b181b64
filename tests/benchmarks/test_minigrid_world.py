"""The true simulator, started from a frame alone."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from support.suites.minigrid import agent, scene
from support.world import Digits
from swirl_lightning.benchmarks.minigrid import CELLS, MiniGrid, read
from swirl_lightning.benchmarks.minigrid.tiles import INDEX, Cell
from swirl_lightning.benchmarks.minigrid.world import MiniGridSimulator

world = MiniGridSimulator()


def names(state):
    """The things on the floor, by column and row."""
    (cells,) = read([state])
    plain = {INDEX[Cell("floor")], INDEX[Cell("wall")]}
    return {(c, r): CELLS[i].name for (r, c), i in np.ndenumerate(cells) if i not in plain}


def test_it_does_what_the_benchmark_recorded():
    rows = MiniGrid(test_size=300).load_split("test")
    assert {row.action.split(" the ")[0] for row in rows} == {
        *("turn left", "turn right", "move forward", "pick up", "drop", "open", "close", "unlock")
    }
    for row in rows:
        (after,) = world.states(row.before, [row.action])
        assert world.same(after, row.after), row.id
        assert not world.same(after, row.before), row.id


def test_what_is_picked_up_can_be_dropped_elsewhere():
    start = scene(at_1_1=agent("right"), at_2_1=Cell("key", "red"))
    found = world.states(start, ["pick up the red key", "turn right", "drop the red key", "drop the red key"])
    assert [names(state) for state in found] == [
        {(1, 1): "agent facing right"},
        {(1, 1): "agent facing down"},
        {(1, 1): "agent facing down", (1, 2): "red key"},
        {(1, 1): "agent facing down", (1, 2): "red key"},
    ]


def test_what_the_agent_carries_follows_from_the_first_action_that_needs_it():
    start = scene(at_1_1=agent("right"), at_2_1=Cell("door", "blue", "locked"))
    opened, closed = world.states(start, ["unlock the blue door", "close the blue door"])
    assert names(opened)[2, 1] == "open blue door"
    assert names(closed)[2, 1] == "closed blue door"
    dropped = world.states(scene(at_1_1=agent("right")), ["turn right", "drop the green ball"])[-1]
    assert names(dropped) == {(1, 1): "agent facing down", (1, 2): "green ball"}


@pytest.mark.parametrize(
    "action", ["pick up the red ball", "open the red door", "drop the red key", "close the blue door", "move forward"]
)
def test_what_cannot_happen_changes_nothing(action):
    start = scene(at_1_1=agent("right"), at_2_1=Cell("key", "red"))
    (after,) = world.states(start, [action])
    assert world.same(after, start)


def test_the_truth_ends_in_lava_and_on_the_rim():
    lava = scene(at_1_1=agent("right"), at_2_1=Cell("lava"))
    assert world.states(lava, ["turn left", "turn right", "move forward", "turn left"])[2:] == [None, None]
    door = scene(at_1_1=agent("left"), at_0_1=Cell("door", "red", "open"))
    assert world.states(door, ["move forward"]) == [None]
    beyond = scene(at_0_1=agent("left", "goal"))
    assert world.states(beyond, ["turn left"]) == [None]


@pytest.mark.parametrize(
    ("state", "action", "told"),
    [
        (scene(at_1_1=agent("left")), "turn lef", "'turn lef' is no action of MiniGrid .*; did you mean 'turn left'?"),
        (scene(at_1_1=agent("left")), "open the red key", "'open the red key' is no action of MiniGrid"),
        (scene(), "turn left", "no frame of MiniGrid"),
        (Image.new("RGB", (48, 48), (9, 200, 9)), "turn left", "no frame of MiniGrid"),
        (Image.new("RGB", (4, 4)), "turn left", "no frame of MiniGrid"),
        ("a text", "turn left", "no frame of MiniGrid"),
    ],
)
def test_what_it_cannot_start_from_is_told(state, action, told):
    with pytest.raises(ValueError, match=told):
        world.states(state, [action])


def test_other_sizes_and_texts_are_no_true_state():
    frame = scene(at_1_1=agent("left"))
    assert world.same(frame, frame.copy())
    assert not world.same(frame, frame.resize((24, 24)))
    assert not world.same(frame, "a text")


def test_other_data_have_no_simulator():
    assert Digits().simulator() is None
    assert MiniGrid().simulator().name == "MiniGrid"
