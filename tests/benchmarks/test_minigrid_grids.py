"""MiniGrid with larger scenes, and with balls that move by themselves."""

from __future__ import annotations

from collections import Counter
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("minigrid")

from support.suites.minigrid import fingerprint, inverse
from swirl_lightning.__main__ import main
from swirl_lightning.benchmarks.minigrid import CELLS, FAMILIES, MiniGrid, generate, read, simulator, split_of
from swirl_lightning.benchmarks.minigrid.tiles import HELD_OUT


def test_frames_can_be_larger():
    data = MiniGrid(grid=9, state_only_size=20, max_gap=3, test_size=120, warmup_size=20)
    rows = data.load_split("test")
    assert {row.before.size for row in (*rows, *data.load_split("state_only"))} == {(72, 72)}
    befores, afters = read([row.before for row in rows]), read([row.after for row in rows])
    assert [inverse(*frames) for frames in zip(befores, afters, strict=True)] == [row.action for row in rows]
    metrics = data.state_metrics()
    metrics.update([row.after for row in rows], rows)
    assert {float(value) for value in metrics.compute().values()} == {1.0}
    world = data.simulator()
    assert all(world.same(world.states(row.before, [row.action])[0], row.after) for row in rows)
    large = rows[0].after.resize((512, 512), Image.Resampling.LANCZOS)
    assert world.same(large, rows[0].after), "as the metrics read it"
    assert not world.same(large, rows[0].before)
    assert not world.same("text", rows[0].before)


def balls_of(scene: np.ndarray) -> list[tuple[int, int]]:
    return [place for place, cell in np.ndenumerate(scene) if CELLS[cell].kind == "ball"]


def test_balls_move_by_themselves_in_state_only_pairs_alone():
    options = {"families": ["lavagap"], "action_shares": {"turn left": 1, "turn right": 1}, "moving_balls": 2}
    data = MiniGrid(**options, state_only_size=40, test_size=40, warmup_size=10)
    for split in ("warmup", "test"):
        for row in data.load_split(split):
            before, after = read([row.before, row.after])
            assert len(balls_of(before)) >= 1
            assert inverse(before, after) == row.action, "nothing else changes"
    moved = 0
    for row in data.load_split("state_only"):
        assert row.action is None, "no action explains the pair"
        before, after = (balls_of(scene) for scene in read([row.before, row.after]))
        ways = [list(zip(before, order, strict=True)) for order in permutations(after)]
        assert any(all(max(abs(a - c), abs(b - d)) <= 1 for (a, b), (c, d) in way) for way in ways), (before, after)
        moved += before != after
    assert moved > 30


def test_balls_lie_where_the_agent_can_come():
    """The rooms of GoToDoor have doors to a rim that it never steps on."""
    for row in MiniGrid(families=["gotodoor"], moving_balls=3, state_only_size=40).load_split("state_only"):
        scene = read([row.before])[0]
        assert all(0 < y < len(scene) - 1 and 0 < x < len(scene) - 1 for y, x in balls_of(scene))


@pytest.mark.parametrize("family", FAMILIES)
def test_each_ball_rolls_to_a_cell_beside_it_and_none_is_lost(family):
    env, rng = simulator._build(family, 8), np.random.default_rng(3)
    rolled = held = 0
    for seed in range(12):
        env.reset(seed=seed)
        balls = simulator._vary(env, family, 3)
        inside = {*simulator._reached(env), (int(env.agent_pos[0]), int(env.agent_pos[1]))}
        assert balls
        assert {tuple(ball.cur_pos) for ball in balls} <= inside, "where the agent can come"
        env.carrying, env.grid.grid[env.grid.grid.index(balls[0])] = balls[0], None
        things = Counter(id(thing) for thing in env.grid.grid if thing is not None)
        for _ in range(20):
            places = [tuple(ball.cur_pos) for ball in balls[1:]]
            env.agent_pos = sorted(inside - set(places))[rng.integers(len(inside) - len(set(places)))]
            if env.grid.get(*env.agent_pos) is not None:
                continue
            simulator._roll(env, balls)
            for ball, (column, row_) in zip(balls[1:], places, strict=True):
                x, y = ball.cur_pos
                assert max(abs(x - column), abs(y - row_)) <= 1
                assert env.grid.get(x, y) is ball
                assert (x, y) != env.agent_pos
                rolled += (x, y) != (column, row_)
            held += balls[0] not in env.grid.grid
            assert Counter(id(thing) for thing in env.grid.grid if thing is not None) == things
    assert rolled > 50
    assert held > 50


def test_the_same_pairs_of_moving_balls_again_and_no_held_out_layout():
    pairs = generate("state_only", 60, balls=2, moving=True, max_gap=4)
    assert not {split_of(scene) for scene in read([row.after for row in pairs])} & set(HELD_OUT)
    assert fingerprint(pairs) == fingerprint(generate("state_only", 60, balls=2, moving=True, max_gap=4))


def test_a_base_for_other_frames_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parents[2])
    sizes = ["--data.init_args.grid", "8", "--trainer.default_root_dir", str(tmp_path)]
    with pytest.raises(SystemExit, match=r"data.grid 8 does not fit the base, which was made for frames of 6 x 6"):
        main(["fit", "-c", "configs/minigrid_quickstart.yaml", *sizes])
