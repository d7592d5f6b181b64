from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("minigrid")

from support.processes import run_module
from support.suites.minigrid import fingerprint, inverse
from swirl_lightning.__main__ import main
from swirl_lightning.benchmarks.minigrid import (
    CELLS,
    FAMILIES,
    SPLITS,
    EffectAccuracy,
    ExactFrameMatch,
    MiniGrid,
    Preservation,
    describe,
    generate,
    random_scene,
    read,
    render,
    simulator,
    split_of,
)
from swirl_lightning.benchmarks.minigrid.tiles import HELD_OUT, INDEX, OBJECTS, Cell, atlas, layout
from swirl_lightning.benchmarks.shares import quotas
from swirl_lightning.transition import Transition

FLOOR, WALL, KEY, AGENT = (
    INDEX[cell] for cell in (Cell("floor"), Cell("wall"), Cell("key", "red"), Cell("floor", facing="left"))
)
SIZES = {"base": 900, "warmup": 400, "state_only": 400, "validation": 250, "test": 250}


@pytest.fixture(scope="module")
def splits() -> dict[str, list[Transition]]:
    return {split: generate(split, n) for split, n in SIZES.items()}


@pytest.fixture(scope="module")
def everything(splits) -> list[Transition]:
    return [row for rows in splits.values() for row in rows]


# ---- tiles ---------------------------------------------------------------------------------------
def test_all_tiles_differ_and_are_read_exactly():
    assert len(np.unique(atlas().reshape(len(CELLS), -1), axis=0)) == len(CELLS)
    scenes = np.arange(2 * 36, dtype=np.uint8).reshape(2, 6, 6) % len(CELLS)
    assert np.array_equal(read([render(scene) for scene in scenes]), scenes)


@pytest.mark.parametrize("grid", [6, 9])
@pytest.mark.parametrize("family", FAMILIES)
def test_frames_equal_those_of_the_simulator(family, grid):
    env = simulator._build(family, grid)
    rng = np.random.default_rng(0)
    for _ in range(3):
        for _ in simulator._episode(env, family, rng, lambda kind: True, 1, 1):
            theirs = env.get_frame(highlight=False, tile_size=8)
            scene = simulator.scene_of(env)
            assert np.array_equal(np.asarray(render(scene)), theirs)
            assert np.array_equal(read([Image.fromarray(theirs)])[0], scene)


def test_reading_forgives_noise():
    rng = np.random.default_rng(1)
    scene = random_scene(rng)
    pixels = np.asarray(render(scene)) + rng.normal(0, 10, (48, 48, 3))
    assert np.array_equal(read([Image.fromarray(pixels.clip(0, 255).astype(np.uint8))])[0], scene)


def test_cells_in_words():
    scene = np.full((6, 6), WALL, dtype=np.uint8)
    scene[0, :5] = [INDEX[c] for c in (Cell("key", "red"), Cell("door", "blue", "open"), *CELLS[-2:], CELLS[0])]
    words = describe(scene)
    assert words[:6] == [
        "red key",
        "open blue door",
        "agent facing left on open yellow door",
        "agent facing up on open yellow door",
        "floor",
        "wall",
    ]
    assert describe(render(scene)) == words
    assert len({cell.name for cell in CELLS}) == len(CELLS)
    with pytest.raises(TypeError, match="is an image"):
        describe("a text")
    with pytest.raises(ValueError, match=r"squares of cells of 8 x 8 pixels.* has 48 x 56 pixels"):
        read([Image.new("RGB", (48, 56))])
    with pytest.raises(ValueError, match=r"all of one size; the first has 48 x 48 pixels, another 64 x 64"):
        read([Image.new("RGB", (48, 48)), Image.new("RGB", (64, 64))])


# ---- splits --------------------------------------------------------------------------------------
def test_same_bytes_in_another_process():
    rows = generate("test", 60, seed=3)
    done = run_module("support.suites.minigrid")
    assert done.stdout.strip() == fingerprint(rows), done.stderr[-3000:]
    assert fingerprint(generate("test", 60, seed=4)) != fingerprint(rows)


def test_splits_share_no_state_before(splits):
    frames = {split: {row.before.tobytes() for row in rows} for split, rows in splits.items()}
    names = list(splits)
    for i, one in enumerate(names):
        for other in names[i + 1 :]:
            assert not frames[one] & frames[other], (one, other)


def test_held_out_layouts_are_nowhere_else(splits):
    for held_out in HELD_OUT:
        hidden = {layout(scene).tobytes() for scene in read([row.before for row in splits[held_out]])}
        assert len(hidden) > 50
        for split in set(splits) - {held_out}:
            frames = [frame for row in splits[split] for frame in (row.before, row.after)]
            assert not hidden & {layout(scene).tobytes() for scene in read(frames)}, (held_out, split)


def test_layout_ignores_agent_and_open_doors():
    scene = np.full((6, 6), FLOOR, dtype=np.uint8)
    scene[0, 0] = INDEX[Cell("door", "red", "locked")]
    scene[1, 1] = AGENT
    other = np.full((6, 6), FLOOR, dtype=np.uint8)
    other[0, 0] = INDEX[Cell("door", "red", "open", facing="up")]
    assert split_of(scene) == split_of(other)
    assert np.array_equal(layout(scene), layout(other))


def test_random_scenes_are_none_of_the_held_out():
    rng = np.random.default_rng(0)
    scenes = [random_scene(rng) for _ in range(200)]
    assert not {split_of(scene) for scene in scenes} & set(HELD_OUT)
    assert all(sum("agent" in word for word in describe(scene)) == 1 for scene in scenes)


# ---- transitions ---------------------------------------------------------------------------------
def test_every_frame_changes(everything):
    assert all(row.before.tobytes() != row.after.tobytes() for row in everything)
    assert all(row.before.size == (48, 48) and row.before.mode == "RGB" for row in everything)


def test_action_follows_from_frames_and_next_frame_from_action(everything):
    actions, nexts = {}, {}
    for row in everything:
        x, y = row.before.tobytes(), row.after.tobytes()
        assert actions.setdefault((x, y), row.action) == row.action
        assert nexts.setdefault((x, row.action), y) == y
    assert len(nexts) == len(everything), "no (before, action) comes twice"


def test_action_is_what_the_frames_show(everything):
    befores, afters = read([row.before for row in everything]), read([row.after for row in everything])
    for row, before, after in zip(everything, befores, afters, strict=True):
        assert inverse(before, after) == row.action


def test_proportions_and_names(splits):
    for split, rows in splits.items():
        kinds = [row.meta["kind"] for row in rows]
        assert set(kinds) == set(simulator.SHARES)
        for kind, share in simulator.SHARES.items():
            assert abs(kinds.count(kind) / len(rows) - share) <= 1 / len(rows)
        assert {row.meta["family"] for row in rows} == set(FAMILIES)
        assert len({row.id for row in rows}) == SIZES[split]


def test_families_can_be_chosen(monkeypatch):
    rows = generate("warmup", 40, families=["fetch"])
    assert {row.meta["family"] for row in rows} == {"fetch"}
    assert not any("door" in row.action for row in rows)
    monkeypatch.setattr(simulator, "_STALLED", 20)
    monkeypatch.setattr(simulator, "_PER_EPISODE", 0)
    with pytest.raises(ValueError, match=r"gave 0 distinct .* 40 were asked for \(short of"):
        generate("warmup", 40, families=["fetch"])


def test_pairs_several_steps_apart_have_no_action():
    rows = generate("state_only", 200, max_gap=4)
    assert len(rows) == 200
    assert all(row.action is None and row.before.tobytes() != row.after.tobytes() for row in rows)
    kinds = [row.meta["kind"] for row in rows]
    assert {kind: kinds.count(kind) for kind in kinds} == quotas(200, simulator.SHARES)
    befores, afters = read([row.before for row in rows]), read([row.after for row in rows])
    assert ((befores != afters).sum((1, 2)) > 2).any(), "no single step changes three cells"
    assert not {split_of(after) for after in afters} & set(HELD_OUT)
    assert fingerprint(generate("state_only", 20, max_gap=1)) == fingerprint(generate("state_only", 20))


def test_pairs_can_be_far_apart(monkeypatch):
    steps = []
    step = simulator._choose
    monkeypatch.setattr(simulator, "_choose", lambda *args: steps.append(1) or step(*args))
    assert len(generate("state_only", 1, min_gap=40, max_gap=40)) == 1
    assert len(steps) >= 40


def test_kinds_come_in_the_shares_asked_for():
    rows = generate("test", 40, shares={"drop": 3, "turn left": 1})
    kinds = [row.meta["kind"] for row in rows]
    assert (kinds.count("drop"), kinds.count("turn left")) == (30, 10)


def test_labels_can_leave_out_things_and_families():
    hidden = tuple(f"{colour} {kind}" for colour in ("red", "blue", "grey") for kind in OBJECTS)
    options = {"warmup_size": 60, "state_only_size": 20, "validation_size": 60, "test_size": 20}
    data = MiniGrid(**options, never_labelled=hidden, labelled_families=["fetch", "doorkey"])
    named = {
        split: {row.action.partition(" the ")[2] for row in data.split(split)} for split in ("warmup", "validation")
    }
    assert not named["warmup"] & set(hidden)
    assert named["warmup"] & set(simulator.THINGS)
    assert named["validation"] & set(hidden)
    assert {row.meta["family"] for row in data.split("warmup")} == {"fetch", "doorkey"}
    assert {row.meta["family"] for row in data.split("validation")} > {"fetch", "doorkey"}
    assert any("red door" in row.action for row in generate("warmup", 400, never_named=hidden)), "doors stay"


# ---- metrics -------------------------------------------------------------------------------------
@pytest.fixture
def row() -> Transition:
    before = np.full((6, 6), FLOOR, dtype=np.uint8)
    before[2, 3], before[4, 4] = AGENT, KEY
    after = before.copy()
    after[2, 3], after[2, 2] = FLOOR, AGENT
    return Transition(render(before), render(after), "move forward")


def values(metric, predicted, rows) -> float:
    metric.update(predicted, rows)
    return float(metric.compute())


def test_hand_computed_values(row):
    half = read([row.after])[0]
    half[2, 2], half[0, 0] = FLOOR, WALL  # one of 2 changed cells wrong, one of 34 others too
    predicted, rows = [row.after, row.before, render(half)], [row] * 3
    effect, kept, exact = EffectAccuracy(), Preservation(), ExactFrameMatch()
    assert values(effect, predicted, rows) == pytest.approx(3 / 6)
    assert values(kept, predicted, rows) == pytest.approx(101 / 102)
    assert values(exact, predicted, rows) == pytest.approx(1 / 3)


def test_what_is_no_frame_is_all_wrong(row):
    garbage = [None, "text", Image.new("L", (48, 48), 7)]
    assert values(EffectAccuracy(), garbage[:2], [row] * 2) == 0
    assert values(Preservation(), garbage[:2], [row] * 2) == 0
    assert values(ExactFrameMatch(), garbage, [row] * 3) == 0
    with pytest.raises(ValueError, match="1 predictions for 2"):
        EffectAccuracy().update([None], [row] * 2)


@pytest.mark.parametrize("side", [24, 120, 512])
def test_frames_of_another_size_are_read(row, side):
    larger = row.after.resize((side, side), Image.Resampling.LANCZOS)
    assert values(ExactFrameMatch(), [larger, row.before.resize((side, side))], [row] * 2) == 0.5


def test_nothing_seen_is_nan():
    metric = EffectAccuracy()
    metric.update([], [])
    assert torch.isnan(metric.compute())


def test_collection_keeps_metrics_apart(row):
    metrics = MiniGrid().state_metrics()
    metrics.update([None], [row])  # all three count nothing at first
    metrics.update([row.before], [row])
    assert {key: float(value) for key, value in metrics.compute().items()} == pytest.approx(
        {"effect_accuracy": 0.0, "preservation": 0.5, "exact_match": 0.0}
    )


# ---- data module ---------------------------------------------------------------------------------
def test_data_module():
    data = MiniGrid(warmup_size=16, state_only_size=24, validation_size=8, test_size=8, seed=5)
    data.setup("fit")
    assert [len(data.split(name)) for name in ("warmup", "state_only", "validation", "test")] == [
        16,
        24,
        8,
        8,
    ]
    assert fingerprint(data.split("warmup")) == fingerprint(generate("warmup", 16)), "seed is not the world's"
    assert all(pair.action is None for pair in data.pairs(0))
    assert set(SPLITS) == {"base", *data.sizes}


def test_the_gap_is_of_state_only_pairs_alone():
    data = MiniGrid(warmup_size=16, state_only_size=24, validation_size=8, test_size=8, max_gap=3)
    assert fingerprint(data.split("state_only")) == fingerprint(generate("state_only", 24, max_gap=3))
    for name in ("warmup", "validation", "test"):
        assert fingerprint(data.split(name)) == fingerprint(generate(name, data.sizes[name]))


def test_labels_and_state_only_pairs_can_show_other_actions():
    sizes = {"warmup_size": 16, "state_only_size": 24, "validation_size": 8, "test_size": 8}
    labelled, pairs = {"pick up": 1}, {"turn left": 1, "move forward": 1}
    shares = {"labelled_action_shares": labelled, "state_only_action_shares": pairs}
    data = MiniGrid(**sizes, action_shares={"drop": 1}, **shares)
    kinds = {name: {row.meta["kind"] for row in data.split(name)} for name in data.sizes}
    assert kinds == {
        "warmup": {"pick up"},
        "state_only": {"turn left", "move forward"},
        "validation": {"drop"},
        "test": {"drop"},
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"families": ["maze"]}, r"unknown MiniGrid families \['maze'\]; choose"),
        ({"families": []}, "choose one or more of"),
        ({"test_size": -1}, r"test_size must lie in \[0, 10000000\], got -1"),
        ({"max_gap": 0}, r"max_gap must lie in \[1, inf\), got 0"),
        ({"min_gap": 3, "max_gap": 2}, "got min_gap 3 and max_gap 2"),
        ({"grid": 5}, r"data.grid must lie in \[6, 16\], got 5"),
        ({"moving_balls": -1}, r"data.moving_balls must lie in \[0, 10\], got -1"),
        ({"never_labelled": ("red door",)}, r"unknown MiniGrid things \['red door'\]"),
        ({"action_shares": {"jump": 1}}, "shares of MiniGrid actions are numbers >= 0 by kind"),
        ({"action_shares": {"drop": -1}}, "shares of MiniGrid actions are numbers >= 0 by kind"),
        ({"state_only_action_shares": {"jump": 1}}, "shares of MiniGrid actions are numbers >= 0 by kind"),
        ({"families": ["empty"], "action_shares": {"open": 1}}, "no kind of action of .* happens in"),
        ({"labelled_families": ["maze"]}, r"unknown MiniGrid families \['maze'\]; choose"),
    ],
)
def test_bad_options_are_named_at_setup(options, message):
    with pytest.raises(ValueError, match=message):
        MiniGrid(**options).setup("fit")
    with pytest.raises(ValueError, match="unknown MiniGrid split 'train'"):
        generate("train", 1)


def test_missing_simulator_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "minigrid", None)
    with pytest.raises(ImportError, match=r"pip install 'swirl-lightning\[minigrid\]'"):
        MiniGrid().setup("fit")


def test_predict_writes_the_frames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parents[2])
    data = ["--data.init_args.test_size", "3", "--data.init_args.eval_batch_size", "2"]
    log = ["--trainer.default_root_dir", str(tmp_path), "--trainer.enable_progress_bar", "false"]
    main(["predict", "-c", "configs/minigrid_quickstart.yaml", *data, *log])
    folder = tmp_path / "predictions"
    rows = [json.loads(line) for line in (folder / "predict-rank0.jsonl").read_text().splitlines()]
    assert len({row["predicted_state"] for row in rows}) == 3
    for row in rows:
        with Image.open(folder / row["predicted_state"]) as frame:
            assert frame.size == (48, 48)
    assert (folder / "contact_sheet.png").exists()
