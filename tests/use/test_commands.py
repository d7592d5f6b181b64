"""What the commands print, and what they refuse in one line."""

from __future__ import annotations

import json
import shutil

import pytest
from PIL import Image

from support.cli import here
from swirl_lightning.benchmarks.minigrid import MiniGrid
from swirl_lightning.benchmarks.minigrid.world import MiniGridSimulator

ACTIONS = ["turn left", "turn left", "turn right"]


def test_frames_stand_beside_the_true_ones(minigrid, tmp_path, capsys):
    rows = MiniGrid(test_size=8).load_split("test")
    rows[2].before.save(tmp_path / "start.png")
    (tmp_path / "actions.txt").write_text("\n" + "\n".join(ACTIONS[1:]) + "\n\n")
    words = ["--action", ACTIONS[0], "--actions", tmp_path / "actions.txt"]
    for name, state in (("file", tmp_path / "start.png"), ("record", "test:2")):
        here("simulate", minigrid, "--state", state, *words, "--branches", 2, "--best_of", 2, "--to", tmp_path / name)
    told = capsys.readouterr().out.splitlines()
    out = tmp_path / "file"
    found = json.loads((out / "steps.json").read_text())
    assert found["branches"] == json.loads((tmp_path / "record" / "steps.json").read_text())["branches"]
    assert (found["actions"], found["start"]) == (ACTIONS, "start.png")
    assert Image.open(out / "start.png").tobytes() == rows[2].before.tobytes()

    world = MiniGridSimulator()
    true = world.states(rows[2].before, ACTIONS)
    assert found["true"]["simulator"] == "MiniGrid"
    assert [Image.open(out / name).tobytes() for name in found["true"]["states"]] == [s.tobytes() for s in true]
    assert len(found["branches"]) == 2
    for number, branch in enumerate(found["branches"], start=1):
        assert [step["action"] for step in branch["steps"]] == ACTIONS
        assert all(step["score"] < 0 and step["log_prob"] < 0 for step in branch["steps"])
        frames = [Image.open(out / step["state"]) for step in branch["steps"]]
        apart = [not world.same(frame, state) for frame, state in zip(frames, true, strict=True)]
        assert branch["parts_at"] == (apart.index(True) + 1 if any(apart) else None)
        if branch["parts_at"]:
            place = branch["parts_at"]
            assert f"branch {number} parts from MiniGrid at step {place} ({ACTIONS[place - 1]})" in told
    with Image.open(out / "rollout.gif") as movie:
        assert movie.n_frames == 4
    sheet = Image.open(out / "contact_sheet.png")
    assert sheet.width > 4 * 128
    assert sheet.height > 3 * 128


def test_a_shorter_call_replaces_a_longer_one_and_the_truth_can_be_left_out(minigrid, tmp_path):
    out = tmp_path / "out"
    here("simulate", minigrid, "--state", "test:0", "--action", "turn left", "--action", "turn left", "--to", out)
    assert (out / "branch-1" / "step-2.png").is_file()
    here("simulate", minigrid, "--state", "test:0", "--action", "jump", "--no_truth", "--greedy", "--to", out)
    assert sorted(p.name for p in out.rglob("*.png")) == ["contact_sheet.png", "start.png", "step-1.png"]
    found = json.loads((out / "steps.json").read_text())
    assert "true" not in found
    assert "parts_at" not in found["branches"][0]


def test_texts_are_shown(digits, tmp_path, capsys):
    for name, text in (("state", "37\n"), ("actions", "inc\nswap\n")):
        (tmp_path / f"{name}.txt").write_text(text, "utf-8-sig")  # as editors of Windows do
    words = ("--state", "37", "--action", "inc", "--action", "swap")
    files = ("--state", tmp_path / "state.txt", "--actions", tmp_path / "actions.txt")
    for name, given in (("words", words), ("file", files)):
        here("simulate", digits, *given, "--to", tmp_path / name)
    found = [json.loads((tmp_path / name / "steps.json").read_text()) for name in ("words", "file")]
    assert found[0] == found[1]
    assert found[0]["start"] == "37"
    assert "true" not in found[0]
    steps = found[0]["branches"][0]["steps"]
    told = capsys.readouterr().out
    for number, step in enumerate(steps, start=1):
        assert f"branch 1, step {number}: {step['action']} (score {step['score']:.4f}, " in told
    assert sorted(p.name for p in (tmp_path / "words").iterdir()) == ["steps.json"]


# ---- what is refused ---------------------------------------------------------------------------------
@pytest.fixture
def refused(capsys, monkeypatch):
    """The one line of an error; the base is not loaded."""

    def load(*args):
        raise AssertionError("the base is loaded")

    monkeypatch.setattr("swirl_lightning.backbones.liquid.load_base", load)
    monkeypatch.setattr("swirl_lightning.backbones.text.load_base", load)

    def run(*args):
        with pytest.raises(SystemExit) as end:
            here(*args)
        told = capsys.readouterr().err if isinstance(end.value.code, int) else end.value.code
        (line,) = told.splitlines()
        assert len(line) < 400, line
        return line

    return run


def test_a_run_that_is_none(refused, minigrid, tmp_path):
    shutil.copy(minigrid / "checkpoints" / "last.ckpt", tmp_path / "alone.ckpt")
    line = refused("label", tmp_path / "alone.ckpt", "test", "--to", tmp_path / "out")
    assert "a checkpoint holds adapters alone: give the config.yaml that it was trained with by --config" in line
    (tmp_path / "alone.ckpt").write_bytes(b"PK")
    (tmp_path / "config.yaml").write_text((minigrid / "config.yaml").read_text())
    assert "alone.ckpt cannot be read" in refused("label", tmp_path / "alone.ckpt", "test", "--to", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_pairs_that_are_none(refused, minigrid, tmp_path):
    (tmp_path / "broken.jsonl").write_text("{\n")
    line = refused("label", minigrid, "state-only", "--to", tmp_path / "out")
    assert line.startswith("error: no such file or folder: state-only; did you mean 'state_only'?")
    with pytest.raises(SystemExit, match=r"none of the 1 records in .*broken\.jsonl can be used as state_only"):
        here("label", minigrid, tmp_path / "broken.jsonl", "--to", tmp_path / "out", "--accelerator", "cpu")


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["--action", "turn left", "--state", "test:8"], "--state test:8: the split has 8 records"),
        (["--action", "turn left", "--state", "in words"], "Liquid reads images, got a state that is text"),
        (["--action", "turn left", "--state", " "], "the state is empty"),
        (["--action", "turn left", "--best_of", "0"], "simulate.best_of must lie in [1, 10000], got 0"),
        (["--action", "turn left", "--best_of", "x"], "argument --best_of: invalid int value: 'x' (all options: swirl"),
        (["--action", "turn left", "--best-of", "2"], "unrecognized arguments: --best-of 2"),
    ],
)
def test_actions_and_states_that_are_none(refused, minigrid, tmp_path, monkeypatch, args, told):
    monkeypatch.chdir(tmp_path)
    assert told in refused("simulate", minigrid, "--state", "test:0", *args, "--to", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_of_something_else_is_left_alone(refused, minigrid, tmp_path):
    (tmp_path / "mine.txt").write_text("dear")
    args = ("--state", "test:0", "--action", "turn left", "--to", tmp_path)
    assert "exists and holds something else: take another folder" in refused("simulate", minigrid, *args)
    assert (tmp_path / "mine.txt").read_text() == "dear"


def test_the_folder_that_one_is_in_is_not_replaced(refused, minigrid, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for args in (("simulate", minigrid, "--state", "test:0", "--action", "turn left"), ("export", minigrid)):
        for folder in (".", tmp_path):
            assert f"you are in the folder {folder}, and a new one would" in refused(*args, "--to", folder)
