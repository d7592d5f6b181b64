"""Plans: in the true world they reach what can be reached; in a model each pair is asked once, a depth at a time."""

from __future__ import annotations

import re

import pytest
from recipes.planning import draw_goals, table

from support.suites.minigrid import agent, scene
from support.swirl import build, randomize
from support.tiny import text_backbone
from swirl_lightning import SWIRL
from swirl_lightning.benchmarks.minigrid import MiniGrid
from swirl_lightning.benchmarks.minigrid.goals import KINDS, MiniGridGoal, goals_in
from swirl_lightning.benchmarks.minigrid.tiles import Cell
from swirl_lightning.benchmarks.minigrid.world import MiniGridSimulator
from swirl_lightning.use.planning import Dynamics, Episode, FWMDynamics, PlanConfig, TrueDynamics, plan, pursue

WORLD = MiniGridSimulator()


class Line:
    """To reach a number by steps of one; 5 is lost."""

    def __init__(self, wanted):
        self.wanted = wanted

    def actions(self, state):
        return ["up", "down", "stay"]

    def distance(self, state):
        return float("inf") if state == "5" else abs(int(state) - self.wanted)


class Numbers(Dynamics):
    """Numbers in words, and a world that is as it says but for what is in ``wrong``."""

    name = "numbers"

    def __init__(self, wrong=()):
        super().__init__()
        self.wrong, self.calls = dict(wrong), []

    def read(self, states):
        return [int(state) for state in states]

    def _predict(self, pairs):
        self.calls.append(list(pairs))
        steps = {"up": 1, "down": -1, "stay": 0}
        return [self.wrong.get(pair, pair[0] + steps[pair[1]]) for pair in pairs]

    def _decode(self, nodes):
        return [str(node) for node in nodes]

    def states(self, state, actions):
        for action in actions:
            (state,) = self.show(self.next([(int(state), action)]))
        return [state]

    def same(self, one, other):
        return one == other


def door(how):
    return Cell("door", "red", how)


# ---- goals -------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("kind", "thing", "things", "distance", "actions"),
    [
        ("reach", "goal", {"at_1_1": agent("right"), "at_3_2": Cell("goal")}, 3, "move forward"),
        ("reach", "goal", {"at_1_1": agent("up", "goal")}, 0, None),
        ("reach", "goal", {"at_1_1": agent("up")}, float("inf"), None),
        ("fetch", "red key", {"at_1_1": agent("right"), "at_2_1": Cell("key", "red")}, 1, "pick up the red key"),
        ("fetch", "red key", {"at_1_1": agent("down"), "at_2_1": Cell("key", "red")}, 2, "move forward"),
        ("fetch", "red key", {"at_1_1": agent("right"), "at_2_1": Cell("key", "blue")}, 0, None),
        (
            "open",
            "red door",
            {"at_1_1": agent("left"), "at_0_1": Cell("door", "red", "closed")},
            1,
            "open the red door",
        ),
        ("open", "red door", {"at_1_1": agent("left"), "at_0_1": Cell("door", "red", "open")}, 0, None),
        ("open", "red door", {"at_1_1": agent("left"), "at_0_1": Cell("door", "red", "locked")}, float("inf"), None),
        ("reach", "goal", {"at_1_1": agent("right"), "at_2_1": Cell("lava"), "at_3_1": Cell("goal")}, 2, None),
    ],
)
def test_goals_are_read_off_a_frame(kind, thing, things, distance, actions):
    goal, frame = MiniGridGoal(kind, thing), scene(**things)
    assert goal.distance(frame) == distance
    assert goal.actions(frame) == ["turn left", "turn right", *([actions] if actions else [])]


def test_frames_without_one_agent_are_lost():
    goal = MiniGridGoal("fetch", "red key")
    for frame in (scene(), scene(at_1_1=agent("left"), at_2_2=agent("left")), scene().resize((9, 9)), "words"):
        assert (goal.actions(frame), goal.distance(frame), goals_in(frame)) == ([], float("inf"), [])


def test_goals_of_a_frame_mean_one_thing_each():
    keys = {"at_1_3": Cell("key", "red"), "at_2_3": Cell("key", "red"), "at_3_3": Cell("ball", "red")}
    doors = {"at_0_1": Cell("door", "red", "closed"), "at_0_2": Cell("door", "blue", "locked")}
    frame = scene(at_1_1=agent("up"), at_4_4=Cell("goal"), **keys, **doors)
    assert set(goals_in(frame)) == {
        MiniGridGoal("reach", "goal"),
        MiniGridGoal("fetch", "red ball"),
        MiniGridGoal("open", "red door"),
    }


def test_what_is_offered_can_happen():
    """Every action but a turn back and forth changes the true frame."""
    for row in MiniGrid(test_size=60).load_split("test"):
        for goal in goals_in(row.before)[:1]:
            for action in goal.actions(row.before):
                (after,) = WORLD.states(row.before, [action])
                assert not WORLD.same(after, row.before), (row.id, action)


# ---- plans -------------------------------------------------------------------------------------------
def test_beam_search_finds_the_shortest_plan_around_a_wall():
    walls = {f"at_2_{row}": Cell("wall") for row in (1, 2, 3)}
    frame = scene(at_1_1=agent("down"), at_3_1=Cell("goal"), **walls)
    (found,) = plan(TrueDynamics(WORLD), [frame], [MiniGridGoal("reach", "goal")], PlanConfig(width=16, depth=12))
    assert (found.distance, len(found.actions)) == (0, 10)
    assert all(WORLD.same(*pair) for pair in zip(found.states, WORLD.states(frame, found.actions), strict=True))


@pytest.mark.parametrize("method", ["beam", "shooting"])
def test_a_depth_of_all_searches_is_one_call_and_no_pair_is_asked_twice(method):
    numbers = Numbers()
    goals = [Line(3), Line(4), Line(-3)]
    found = plan(numbers, ["0", "0", "0"], goals, PlanConfig(method, width=64, depth=8))
    assert [one.distance for one in found] == [0, 0, 0]
    assert len(numbers.calls) <= 8
    asked = [pair for call in numbers.calls for pair in call]
    assert len(asked) == len(set(asked)) == numbers.asked
    if method == "beam":
        assert [one.actions for one in found] == [["up"] * 3, ["up"] * 4, ["down"] * 3]
        assert [one.states for one in found] == [list("123"), list("1234"), ["-1", "-2", "-3"]]


def test_a_plan_ends_nearest_to_a_goal_that_is_out_of_reach():
    (found,) = plan(Numbers(), ["0"], [Line(7)], PlanConfig(depth=3))
    assert (found.actions, found.distance) == (["up"] * 3, 4)
    (found,) = plan(Numbers(), ["0"], [Line(7)], PlanConfig(depth=9))  # 5 is lost, and nothing goes on from it
    assert (found.actions, found.distance) == (["up"] * 4, 3)
    (found,) = plan(Numbers(), ["2"], [Line(2)])
    assert (found.actions, found.distance) == ([], 0)


def test_plans_are_made_anew_where_the_world_is_not_as_predicted():
    model = Numbers({(1, "up"): -9})  # it fears a step that is safe
    (episode,) = pursue(model, Numbers(), ["0"], [Line(3)], PlanConfig(depth=3), max_steps=4)
    assert not episode.reached
    world = Numbers({(1, "up"): 0})
    (episode,) = pursue(Numbers(), world, ["0"], [Line(2)], PlanConfig(depth=4), max_steps=4)
    assert (episode.states, episode.plans, episode.reached) == (list("01010"), 2, False)
    (episode,) = pursue(Numbers(), Numbers(), ["0"], [Line(4)], PlanConfig(depth=2), max_steps=9)
    assert (episode.actions, episode.plans, episode.reached) == (["up"] * 4, 2, True)


def test_the_true_world_is_the_upper_bound_and_chance_the_lower_one():
    (tasks,) = draw_goals(MiniGrid(test_size=200).load_split("test"), 4, seeds=[0])
    states, goals = [state for state, _ in tasks], [goal for _, goal in tasks]
    assert [goal.kind for goal in goals] == [kind for kind in KINDS for _ in range(4)]
    true = TrueDynamics(WORLD)
    best = pursue(true, WORLD, states, goals, PlanConfig(width=32, depth=12))
    chance = pursue(true, WORLD, states, goals, PlanConfig("shooting", 1, 1))
    assert sum(e.reached for e in best) >= 10
    assert sum(e.reached for e in chance) <= 6
    for episode, (start, goal) in zip(best, tasks, strict=True):
        true_states = WORLD.states(start, episode.actions)
        assert all(WORLD.same(*pair) for pair in zip(true_states, episode.states[1:], strict=True))
        assert episode.reached == (goal.distance(episode.states[-1]) == 0)
    assert all(e.plans == 1 for e in best if e.reached)
    with pytest.raises(ValueError, match=r"too few goals: .*'reach'"):
        draw_goals([], 1, seeds=[0])


def test_the_fwm_is_asked_in_batches_and_gives_its_likeliest_states(gemma_path):
    model = build(gemma_path, quantization=None)
    randomize(model)
    dynamics = FWMDynamics(model.eval(), batch_size=2)
    nodes = dynamics.read(["37", "12"])
    pairs = [(nodes[0], "inc"), (nodes[1], "swap"), (nodes[0], "inc"), (nodes[1], "dec")]
    found = dynamics.show(dynamics.next(pairs))
    assert dynamics.asked == 3
    alone = [model.predict_state(s, z, greedy=True)[0] for s, z in (("37", "inc"), ("12", "swap"), ("12", "dec"))]
    assert found == [alone[0], alone[1], alone[0], alone[2]]


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"method": "best"}, "plan.method must be 'beam' or 'shooting', got 'best'"),
        ({"width": 0}, "plan.width must lie in [1, inf), got 0"),
        ({"depth": 0}, "plan.depth must lie in [1, inf), got 0"),
    ],
)
def test_settings_that_are_none_are_refused(settings, told):
    with pytest.raises(ValueError, match=re.escape(told)):
        PlanConfig(**settings)


def test_a_run_without_fwm_cannot_plan(gemma_path):
    with pytest.raises(ValueError, match="next states come from the FWM"):
        FWMDynamics(SWIRL(text_backbone(gemma_path), roles=("idm",)))


def test_the_table_counts_goals_by_kind_and_seed():
    episodes = [Episode(["a"] * n, [], reached) for n, reached in ((2, True), (4, True), (9, False))]
    tasks = [(kind, seed, e) for seed in (0, 1) for kind, e in zip(KINDS, episodes, strict=True)]
    better = [(kind, seed, Episode(["a"], [], True if seed else e.reached)) for kind, seed, e in tasks]
    head, _, *lines = table({"beam": [tasks], "other": [better]}, [("other", "beam")])
    assert head == "| model and search | all goals | by seed | reach | fetch | open | steps |"
    assert lines[0] == "| beam | 67 | 67, 67 | 100 | 100 | 0 | 3.0 |"
    half = 2.5706 * (1 / 6) ** 0.5 / 6**0.5  # of one run: Student's t over its six goals, one of them 1 and five 0
    paired = f"17 [{100 * (1 / 6 - half):.0f}, {100 * (1 / 6 + half):.0f}]"
    assert lines[2].startswith(f"| other − beam | {paired} | 0, 33 | 0 [0, 0] | 0 [0, 0] | 50 [")


def test_seeds_take_goals_of_different_frames():
    rows = MiniGrid(test_size=200).load_split("test")
    sets = draw_goals(rows, 3, seeds=[5, 6])
    assert [[goal.kind for _, goal in tasks] for tasks in sets] == [[kind for kind in KINDS for _ in range(3)]] * 2
    assert len({frame.tobytes() for tasks in sets for frame, _ in tasks}) == 18
    with pytest.raises(
        ValueError, match=r"200 frames .* too few goals: .* not 600 of each kind; set --goals or --seeds"
    ):
        draw_goals(rows, 100, seeds=range(6))
