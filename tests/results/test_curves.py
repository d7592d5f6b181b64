"""Curves over iterations and steps as an image."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from swirl_lightning.__main__ import main as swirl
from swirl_lightning.results.curves import Curve, Intervals, Panel, draw, scalars
from swirl_lightning.results.report import panels_of


def events(folder, tag, values, first=0):
    writer = SummaryWriter(str(folder))
    for step, value in enumerate(values, start=first):
        writer.add_scalar(tag, value, step)
    writer.close()


def run(folder, rows):
    folder.mkdir(parents=True)
    table = {name: {"fwm/sampled/exact_match": score} for name, score in rows.items()}
    (folder / "results.json").write_text(json.dumps({"validation": table}))
    return folder / "results.json"


def test_running_means_by_hand():
    smooth = Curve(np.array([1.0, 2, 3, 4]), np.array([1.0, 3, 5, 9])).smoothed(2)
    assert smooth.positions.tolist() == [2, 3, 4]
    assert smooth.values.tolist() == [2, 4, 7]
    assert Curve(np.array([1.0]), np.array([3.0])).smoothed(20).values.tolist() == [3]


def test_scalars_of_a_resumed_run_are_those_of_the_later_part(tmp_path):
    events(tmp_path, "fwm/reward", [0.0, 1.0, 2.0])
    events(tmp_path, "fwm/reward", [10.0, 11.0], first=2)
    found = scalars(tmp_path, ["fwm/reward", "idm/reward"])
    assert list(found) == ["fwm/reward"]
    assert found["fwm/reward"].positions.tolist() == [0, 1, 2, 3]
    assert found["fwm/reward"].values.tolist() == [0, 1, 10, 11]


def test_panels_have_a_line_for_each_run_over_the_rows_of_all(tmp_path):
    files = [run(tmp_path / "a", {"SFT": 0.5, "SWIRL iteration 1": 0.75}), run(tmp_path / "b", {"SFT": 0.25})]
    events(tmp_path / "a", "fwm/reward", [float(n) for n in range(30)])
    scores, rewards = panels_of(files)
    assert list(scores.names) == ["SFT", "SWIRL iteration 1"]
    assert {name: lines[0].values.tolist() for name, lines in scores.lines.items()} == {"a": [0.5, 0.75], "b": [0.25]}
    assert list(rewards.lines) == ["a"]
    assert rewards.lines["a"][0].values[0] == pytest.approx(9.5)  # mean of 0 ... 19
    assert rewards.lines["a"][0].positions.tolist() == list(range(19, 30))


def test_the_report_shows_the_curves(tmp_path):
    file = run(tmp_path / "run", {"SFT": 0.5, "a $\\broken formula": 0.75})
    swirl(["report", str(file)])
    with Image.open(tmp_path / "run" / "report.png") as image:
        grey = np.array(image.convert("L"))
    assert grey.std() > 10  # something is drawn
    assert "![curves](report.png)" in (tmp_path / "run" / "report.md").read_text()
    assert '<img alt="curves" src="report.png">' in (tmp_path / "run" / "report.html").read_text()


def test_seeds_make_a_mean_and_a_band(tmp_path):
    steps = np.arange(50.0)
    low, high = Curve(steps, np.zeros(50)), Curve(steps[10:], np.ones(40))
    draw([Panel("reward", {"ours": [low, high], "other": [low]})], tmp_path / "both.png")
    draw([Panel("reward", {"ours": [low], "other": [low]})], tmp_path / "one.png")
    with Image.open(tmp_path / "both.png") as both, Image.open(tmp_path / "one.png") as one:
        assert both.size == one.size
        assert both.tobytes() != one.tobytes()


def test_an_image_that_is_not_finished_leaves_the_old_one(tmp_path, monkeypatch):
    def cut(figure, file, **options):
        (Path(file) if isinstance(file, str | Path) else Path(file.name)).write_bytes(b"half")
        raise KeyboardInterrupt

    panel = Panel("reward", {"ours": [Curve(np.arange(3.0), np.zeros(3))]})
    draw([panel], tmp_path / "a.png")
    kept = (tmp_path / "a.png").read_bytes()
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", cut)
    with pytest.raises(KeyboardInterrupt):
        draw([panel], tmp_path / "a.png")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a.png": kept}


def test_intervals_are_drawn_from_end_to_end(tmp_path):
    """A wider interval is the only difference between the two images."""
    rows = {"SFT": (0.5, 0.4, 0.6), "recipe": (0.6, 0.3, 0.9)}
    draw([Intervals("exact", rows)], tmp_path / "narrow.png")
    draw([Intervals("exact", {**rows, "SFT": (0.5, 0.45, 0.6)})], tmp_path / "other.png")
    with Image.open(tmp_path / "narrow.png") as one, Image.open(tmp_path / "other.png") as other:
        changed = np.argwhere(np.array(one) != np.array(other))
    assert 0 < len(changed) < 0.01 * one.size[0] * one.size[1]
    assert changed[:, 0].max() < one.size[1] / 2  # the first row of the table stands above


def test_nothing_to_draw_is_said(tmp_path):
    with pytest.raises(ValueError, match="no curves"):
        draw([], tmp_path / "none.png")
