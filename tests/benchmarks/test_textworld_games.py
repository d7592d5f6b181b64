"""Games of TextWorld, and the files of transitions that are made from them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from support.suites.textworld import SMALL, needs_engine
from swirl_lightning.benchmarks.textworld import World, dataset, games, play, write
from swirl_lightning.benchmarks.textworld.dataset import SPLITS, ensure, game_seeds, load, make_rows

pytestmark = needs_engine


def test_steps_follow_each_other_and_change_something():
    for seed in range(4):
        steps = list(play(seed, SMALL))
        assert all(step.before != step.after for step in steps)
        assert all(step.kind in games.KINDS and step.action.startswith(step.kind) for step in steps)
        assert all(one.after == other.before for one, other in pairwise(steps))
        assert len(steps) <= SMALL.steps


def test_the_way_to_win_is_followed_as_often_as_asked():
    from textworld.generator.game import GameProgression

    for seed in range(4):
        world = World(rooms=2, objects=6, quest_length=3, steps=8, on_path=1.0)
        steps = list(play(seed, world))
        progress = GameProgression(games._make(seed, world))
        for action in progress.winning_policy:
            progress.update(action)
        assert progress.completed
        assert len(steps) == len(GameProgression(games._make(seed, world)).winning_policy)
        assert all(step.on_path for step in steps)
    astray = [step for seed in range(4) for step in play(seed, World(objects=6, quest_length=3, on_path=0, moves=0))]
    assert not any(step.on_path for step in astray)
    assert len({step.kind for step in astray}) > 3


def test_moves_are_as_rare_as_asked():
    def moves(share: float) -> int:
        worlds = World(rooms=3, objects=6, quest_length=3, on_path=0, moves=share)
        return sum(step.kind == "go" for seed in range(3) for step in play(seed, worlds))

    assert moves(0.0) < 5 < 15 < moves(1.0)


def test_same_bytes_in_another_process(tmp_path):
    code = (
        "import sys; from pathlib import Path; from swirl_lightning.benchmarks.textworld import World;"
        "from swirl_lightning.benchmarks.textworld.dataset import ensure;"
        "print(ensure(Path(sys.argv[1]), 'state_only', 20, World(2, 6, 3, 8), max_gap=3))"
    )
    ensure(tmp_path / "used", "test", 5, SMALL)  # what was made before in this process is of no matter
    ours = ensure(tmp_path / "ours", "state_only", 20, SMALL, max_gap=3)
    environment = {**os.environ, "PYTHONHASHSEED": "1"}  # sets in another order than here
    run = [sys.executable, "-c", code, str(tmp_path / "theirs")]
    out = subprocess.run(run, capture_output=True, text=True, check=True, env=environment).stdout
    theirs = Path(out.strip().splitlines()[-1])
    assert theirs.name == ours.name
    assert theirs.read_bytes() == ours.read_bytes()
    assert theirs.with_suffix(".json").read_bytes() == ours.with_suffix(".json").read_bytes()


def test_made_once_and_anew_where_settings_differ(tmp_path, monkeypatch):
    first = ensure(tmp_path, "warmup", 10, SMALL)
    written = first.stat().st_mtime_ns
    others = [
        ensure(tmp_path, "warmup", 11, SMALL),
        ensure(tmp_path, "warmup", 10, SMALL, world_seed=1),
        ensure(tmp_path, "warmup", 10, World(2, 6, 3, 8, on_path=0.9)),
        ensure(tmp_path, "test", 10, SMALL),
    ]
    assert len({path.read_bytes() for path in [first, *others]}) == 5
    assert ensure(tmp_path, "warmup", 10, SMALL, max_gap=4) == first, "a gap is of state-only pairs alone"
    monkeypatch.setitem(sys.modules, "textworld", None)
    assert ensure(tmp_path, "warmup", 10, SMALL) == first
    assert first.stat().st_mtime_ns == written
    assert len(load(first)) == 10
    with pytest.raises(ImportError, match=r"pip install 'swirl-lightning\[textworld\]'"):
        ensure(tmp_path, "warmup", 12, SMALL)
    about = json.loads(first.with_suffix(".json").read_text())
    assert about["settings"]["rooms"] == 2
    assert sum(about["kinds"].values()) == 10
    first.write_text(first.read_text().replace("You", "I", 1))
    with pytest.raises(ValueError, match=r"was changed after it was made: .*; delete it to make it anew"):
        load(first)


def test_an_interrupted_making_leaves_nothing(tmp_path, monkeypatch):
    def stop(seed: int, world: World) -> Any:
        if seed > game_seeds("test", 0)[1]:
            raise KeyboardInterrupt
        return play(seed, world)

    with monkeypatch.context() as patch:
        patch.setattr(dataset, "play", stop)
        with pytest.raises(KeyboardInterrupt):
            ensure(tmp_path, "test", 40, SMALL)
    assert not list(tmp_path.iterdir())

    def full(_: int) -> None:
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="no space"):
            ensure(tmp_path, "test", 5, SMALL)
    assert not list(tmp_path.iterdir())


def test_games_that_give_nothing_new_stop_it(monkeypatch):
    (step,) = list(play(0, World(2, 6, 3, steps=1)))
    monkeypatch.setattr(dataset, "play", lambda seed, world: iter([step]))
    with pytest.raises(ValueError, match="gave 1 distinct transitions for split 'test', 2 were asked for"):
        list(make_rows("test", 2, SMALL))


def test_splits_share_no_game_and_hardly_a_step():
    ranges = [game_seeds(split, world) for world in (0, 1, 8588) for split in SPLITS]
    for one, other in pairwise(ranges):
        assert one.stop <= other.start
    assert ranges[-1].stop <= 2**32
    made = {split: list(make_rows(split, 150, SMALL)) for split in ("warmup", "validation", "test")}
    for split, rows in made.items():
        assert {row["game"] for row in rows} <= set(game_seeds(split, 0))
        assert len({(row["before"], row["action"]) for row in rows}) == len(rows) == 150
    steps = {split: {(row["before"], row["action"], row["after"]) for row in rows} for split, rows in made.items()}
    for split in ("warmup", "validation"):
        assert len(steps[split] & steps["test"]) <= 1, split


def test_pairs_are_one_to_max_gap_steps_apart():
    rows = list(make_rows("state_only", 60, SMALL, max_gap=3))
    assert {row["gap"] for row in rows} == {1, 2, 3}
    assert not any("action" in row or "kind" in row for row in rows)
    played = {game: list(play(game, SMALL)) for game in {row["game"] for row in rows}}
    for row in rows:
        steps = played[row["game"]]
        assert row["before"] == write(steps[row["step"]].before)
        assert row["after"] == write(steps[row["step"] + row["gap"] - 1].after) != row["before"]
    assert {row["gap"] for row in make_rows("state_only", 20, SMALL)} == {1}


def test_kinds_of_action_have_their_shares():
    rows = list(make_rows("warmup", 20, SMALL, shares={"take": 0.6, "drop": 0.4, "go": 0.0}))
    kinds = [row["kind"] for row in rows]
    assert {kind: kinds.count(kind) for kind in kinds} == {"take": 12, "drop": 8}


def test_no_step_of_a_pair_is_of_a_kind_that_is_left_out():
    shares = dict.fromkeys(set(games.KINDS) - {"drop", "go"}, 1.0)
    rows = list(make_rows("state_only", 30, SMALL, max_gap=3, shares=shares))
    assert {row["gap"] for row in rows} == {1, 2, 3}
    for row in rows:
        steps = list(play(row["game"], SMALL))[row["step"] : row["step"] + row["gap"]]
        assert write(steps[0].before) == row["before"]
        assert not {step.kind for step in steps} & {"drop", "go"}
    assert all("kind" not in row for row in rows)
