from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

from swirl_lightning.__main__ import main
from swirl_lightning.benchmarks.textworld import (
    EffectAccuracy,
    ExactStateMatch,
    Hallucination,
    Preservation,
    TextWorld,
    World,
    dataset,
    games,
    play,
    read,
    visible,
    write,
)
from swirl_lightning.benchmarks.textworld.dataset import SPLITS, ensure, game_seeds, load, make_rows
from swirl_lightning.results.table import read as read_results
from swirl_lightning.transition import Transition

ROOT = Path(__file__).parents[2]
SMALL = World(rooms=2, objects=6, quest_length=3, steps=8)


@pytest.fixture
def engine():
    return pytest.importorskip("textworld", reason="TextWorld is not installed")


# ---- facts ---------------------------------------------------------------------------------------
def seen_by_the_engine(game, state) -> dict[str, str]:
    """What the engine's own map of the world says of the player's room and hands."""
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


def test_texts_of_real_states_say_what_the_engine_says(engine):
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


def test_what_is_closed_or_elsewhere_is_not_seen(engine):
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


# ---- metrics -------------------------------------------------------------------------------------
BEFORE = "You are in the attic. You can go south. The chest is closed. You carry the egg."
AFTER = "You are in the attic. You can go south. The chest is open. The coin is in the chest. You carry the egg."
OPEN = Transition(BEFORE, AFTER, "open chest", meta={"kind": "open"})
EAT = Transition(BEFORE, BEFORE.replace(" You carry the egg.", ""), "eat egg", meta={"kind": "eat"})
GO = Transition("You are in the attic.", "You are in the cellar. You can go north.", "go south", meta={"kind": "go"})
NAN = float("nan")


@pytest.mark.parametrize(
    ("row", "predicted", "expected"),  # effect, preservation, hallucination, exact
    [
        (OPEN, AFTER, (1, 1, 0, 1)),
        (OPEN, " ".join(reversed(AFTER.split(". "))).replace("egg.", "egg. ", 1), (0, 0, 1, 0)),
        (OPEN, ". ".join(reversed(AFTER.rstrip(".").split(". "))) + ".", (1, 1, 0, 1)),
        (OPEN, BEFORE, (0, 1, 0, 0)),
        (OPEN, BEFORE.replace("closed", "open"), (1 / 2, 1, 0, 0)),
        (OPEN, AFTER.replace("coin", "cup"), (1 / 2, 1, 1 / 5, 0)),
        (OPEN, AFTER.replace("You can go south. ", "It rains. "), (1, 2 / 3, 1 / 5, 0)),
        (OPEN, AFTER + " The chest is closed.", (1 / 2, 1, 1 / 5, 0)),
        (OPEN, AFTER + " It is late.", (1, 1, 1 / 6, 0)),
        (OPEN, "", (0, 0, NAN, 0)),
        (OPEN, None, (0, 0, NAN, 0)),
        (OPEN, "The chest is open. Well.", (0, 0, 1, 0)),
        (EAT, EAT.after, (1, 1, 0, 1)),
        (EAT, EAT.before, (0, 1, 0, 0)),
        (EAT, "nothing", (0, 0, 1, 0)),
        (GO, GO.after, (1, NAN, 0, 1)),
        (GO, "You are in the cellar.", (1 / 2, NAN, 0, 0)),
    ],
)
def test_hand_computed_values(row, predicted, expected):
    for make, value in zip((EffectAccuracy, Preservation, Hallucination, ExactStateMatch), expected, strict=True):
        metric = make()
        metric.update([predicted], [row])
        assert float(metric.compute()[metric.name]) == pytest.approx(value, nan_ok=True)


def test_means_are_over_transitions_and_by_kind():
    data = TextWorld(per_kind=True)
    metrics = data.state_metrics()
    metrics.update([AFTER, BEFORE, "You are in the cellar."], [OPEN, EAT, GO])
    metrics.update([BEFORE], [OPEN])
    values = {name: float(value) for name, value in metrics.compute().items()}
    assert {name: value for name, value in values.items() if name.startswith("effect")} == pytest.approx(
        {
            "effect_accuracy": (1 + 0 + 0.5 + 0) / 4,
            "effect_accuracy/open": 0.5,
            "effect_accuracy/eat": 0,
            "effect_accuracy/go": 0.5,
        }
    )
    assert values["preservation"] == 1
    assert "preservation/go" not in values
    assert {"exact_match/open", "hallucination/go", "rouge_l/eat"} < set(values)
    plain = TextWorld().state_metrics()
    assert set(plain.keys()) == {"effect_accuracy", "preservation", "hallucination", "exact_match", "rouge_l"}


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_nothing_seen_is_nan():
    assert all(float(value) != float(value) for value in TextWorld().state_metrics().compute().values())


# ---- games ---------------------------------------------------------------------------------------
def test_steps_follow_each_other_and_change_something(engine):
    for seed in range(4):
        steps = list(play(seed, SMALL))
        assert all(step.before != step.after for step in steps)
        assert all(step.kind in games.KINDS and step.action.startswith(step.kind) for step in steps)
        assert all(one.after == other.before for one, other in pairwise(steps))
        assert len(steps) <= SMALL.steps


def test_the_way_to_win_is_followed_as_often_as_asked(engine):
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


def test_moves_are_as_rare_as_asked(engine):
    def moves(share: float) -> int:
        worlds = World(rooms=3, objects=6, quest_length=3, on_path=0, moves=share)
        return sum(step.kind == "go" for seed in range(3) for step in play(seed, worlds))

    assert moves(0.0) < 5 < 15 < moves(1.0)


# ---- files ---------------------------------------------------------------------------------------
def test_same_bytes_in_another_process(engine, tmp_path):
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


def test_made_once_and_anew_where_settings_differ(engine, tmp_path, monkeypatch):
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


def test_an_interrupted_making_leaves_nothing(engine, tmp_path, monkeypatch):
    def stop(seed: int, world: World) -> Any:
        if seed > game_seeds("test", 0)[1]:
            raise KeyboardInterrupt
        return play(seed, world)

    with monkeypatch.context() as patch:
        patch.setattr(dataset, "play", stop)
        with pytest.raises(KeyboardInterrupt):
            ensure(tmp_path, "test", 40, SMALL)
    assert not list(tmp_path.iterdir())

    def full(self: Path, *args: Any, **kwargs: Any) -> int:
        self.touch()
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        with pytest.raises(OSError, match="no space"):
            ensure(tmp_path, "test", 5, SMALL)
    assert not list(tmp_path.iterdir())


def test_games_that_give_nothing_new_stop_it(engine, monkeypatch):
    (step,) = list(play(0, World(2, 6, 3, steps=1)))
    monkeypatch.setattr(dataset, "play", lambda seed, world: iter([step]))
    with pytest.raises(ValueError, match="gave 1 distinct transitions for split 'test', 2 were asked for"):
        list(make_rows("test", 2, SMALL))


def test_splits_share_no_game_and_hardly_a_step(engine):
    ranges = [game_seeds(split, world) for world in (0, 1, 8588) for split in SPLITS]
    for one, other in pairwise(ranges):
        assert one.stop <= other.start
    assert ranges[-1].stop <= 2**32
    made = {split: list(make_rows(split, 150, SMALL)) for split in ("base", "warmup", "validation", "test")}
    for split, rows in made.items():
        assert {row["game"] for row in rows} <= set(game_seeds(split, 0))
        assert len({(row["before"], row["action"]) for row in rows}) == len(rows) == 150
    steps = {split: {(row["before"], row["action"], row["after"]) for row in rows} for split, rows in made.items()}
    for split in ("base", "warmup", "validation"):
        assert len(steps[split] & steps["test"]) <= 1, split


def test_pairs_are_one_to_max_gap_steps_apart(engine):
    rows = list(make_rows("state_only", 60, SMALL, max_gap=3))
    assert {row["gap"] for row in rows} == {1, 2, 3}
    assert not any("action" in row or "kind" in row for row in rows)
    played = {game: list(play(game, SMALL)) for game in {row["game"] for row in rows}}
    for row in rows:
        steps = played[row["game"]]
        assert row["before"] == write(steps[row["step"]].before)
        assert row["after"] == write(steps[row["step"] + row["gap"] - 1].after) != row["before"]
    assert {row["gap"] for row in make_rows("state_only", 20, SMALL)} == {1}


# ---- data module ---------------------------------------------------------------------------------
def small(folder: Path, **options: Any) -> TextWorld:
    sizes = {f"{split}_size": 6 for split in SPLITS}
    return TextWorld(str(folder), **{**sizes, "objects": 6, "quest_length": 3, "steps": 8, **options})


def test_data_module(engine, tmp_path):
    data = small(tmp_path, state_only_size=9, max_gap=2)
    data.prepare_data()
    assert sorted(path.name.split("-")[0] for path in tmp_path.glob("*.jsonl")) == [
        "state_only",
        "validation",
        "warmup",
    ]
    data.setup("fit")
    assert [len(data.split(name)) for name in ("warmup", "state_only", "validation", "test")] == [6, 9, 6, 6]
    assert len(data.base()) == 6
    assert all(pair.action is None for pair in data.pairs(0))
    row = data.split("warmup")[0]
    assert row.meta["kind"] == str(row.action).split()[0]
    assert row.id.startswith("warmup-0000")
    with pytest.raises(ValueError, match="the split 'validation' is empty"):
        small(tmp_path, validation_size=0).split("validation")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rooms": 0}, "rooms of TextWorld must be at least 1, got 0"),
        ({"on_path": 1.5}, r"on_path of TextWorld must be between 0 and 1, got 1\.5"),
        ({"moves": -0.1}, "moves of TextWorld must be between 0 and 1"),
        ({"test_size": -1}, "test_size of TextWorld must not be negative, got -1"),
        ({"max_gap": 0}, "max_gap of TextWorld must be at least 1, got 0"),
        ({"world_seed": 8589}, "world_seed of TextWorld must be between 0 and 8588, got 8589"),
    ],
)
def test_bad_options_are_named_before_anything_is_made(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        small(tmp_path / "new", **options).prepare_data()
    with pytest.raises(ValueError, match=message):
        small(tmp_path / "new", **options).setup("fit")
    assert not (tmp_path / "new").exists()


def test_fit_and_test_by_the_command(engine, gemma_path, tmp_path, monkeypatch):
    """The shipped config with a tiny base and a few games."""
    settings = yaml.safe_load((ROOT / "configs" / "textworld_smollm2.yaml").read_text())
    model, data = settings["model"]["init_args"], settings["data"]["init_args"]
    model["backbone"]["init_args"] |= {"model_name_or_path": str(gemma_path), "max_state_tokens": 40}
    model["grpo"]["group_size"] = 2
    data |= {"objects": 6, "quest_length": 3, "steps": 8, "batch_size": 4, "per_kind": True}
    data |= {"warmup_size": 8, "state_only_size": 8, "validation_size": 4, "test_size": 6, "pairs_per_iteration": 4}
    settings["phase_switch"]["warmup_epochs"] = 1
    for phase in ("fwm", "idm"):
        model["optim"][phase]["warmup"] = 0  # there is one step
    settings["trainer"]["enable_progress_bar"] = False
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings))
    monkeypatch.chdir(tmp_path)
    main(["fit", "-c", "config.yaml"])
    run = Path("runs/textworld_smollm2")
    assert {"SFT", "SWIRL iteration 1"} <= set(read_results(run / "results.json")["validation"])
    assert not list(Path("data/textworld").glob("test-*"))
    main(["test", "-c", "config.yaml", "--ckpt_path", str(run / "checkpoints" / "last.ckpt")])
    assert len(list(Path("data/textworld").glob("*.jsonl"))) == 4
    found = read_results(run / "results.json")
    values = found["test"]["SWIRL iteration 1"]
    for mode in ("sampled", "greedy"):
        for name in ("effect_accuracy", "preservation", "hallucination", "exact_match", "rouge_l"):
            assert 0 <= values[f"fwm/{mode}/{name}"] <= 1
        assert any(key.startswith(f"fwm/{mode}/effect_accuracy/") for key in values)
        assert f"idm/{mode}/exact_match" in values
    assert found["about"]["test"]["SWIRL iteration 1"]["suite"] == "TextWorld"
