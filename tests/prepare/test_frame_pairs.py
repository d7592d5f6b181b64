"""Pairs of frames that lie in folders."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from swirl_lightning.data import JSONLTransitions
from swirl_lightning.prepare.frame_pairs import main, make_pairs


@pytest.fixture
def frames(tmp_path):
    for name, count in (("b", 3), ("a/c", 11)):
        folder = tmp_path / "frames" / name
        folder.mkdir(parents=True)
        for n in range(count):
            Image.new("RGB", (2, 2), (n, 0, 0)).save(folder / f"{n}.png")
        (folder / "notes.txt").write_text("no frame")
    return tmp_path / "frames"


def test_neighbours_in_the_order_of_their_numbers_within_each_folder(frames, tmp_path):
    assert make_pairs(frames, tmp_path / "out") == 12
    rows = JSONLTransitions(state_only=str(tmp_path / "out" / "pairs.jsonl")).split("state_only")
    shown = [(row.id, row.before.getpixel((0, 0))[0], row.after.getpixel((0, 0))[0]) for row in rows]
    assert shown == [
        *((f"a/c/{n}.png+1", n, n + 1) for n in range(10)),
        *((f"b/{n}.png+1", n, n + 1) for n in range(2)),
    ]


def test_a_step_of_more_frames(frames, tmp_path, capsys):
    main([str(frames), str(tmp_path / "out"), "--step", "4"])
    assert capsys.readouterr().out == "pairs: 7\n"
    lines = (tmp_path / "out" / "pairs.jsonl").read_text().splitlines()
    assert json.loads(lines[-1]) == {
        "before_image": "../frames/a/c/6.png",
        "after_image": "../frames/a/c/10.png",
        "id": "a/c/6.png+4",
    }


def test_no_pair_is_told(frames, tmp_path):
    with pytest.raises(ValueError, match="has two frames 11 apart: lower the step"):
        make_pairs(frames, tmp_path / "out", 11)
    with pytest.raises(ValueError, match=r"frame_pairs\.step must lie in"):
        make_pairs(frames, tmp_path / "out", 0)
    (tmp_path / "none").mkdir()
    with pytest.raises(FileNotFoundError, match="no frames"):
        make_pairs(tmp_path / "none", tmp_path / "out")


def test_paths_hold_below_a_folder_that_is_a_link(frames, tmp_path):
    (tmp_path / "far" / "away" / "disk").mkdir(parents=True)
    (tmp_path / "data").symlink_to(tmp_path / "far" / "away" / "disk")
    make_pairs(frames, tmp_path / "data" / "pairs")
    rows = JSONLTransitions(state_only=str(tmp_path / "data" / "pairs" / "pairs.jsonl")).split("state_only")
    assert len(rows) == 12
