"""The table of rows that SWIRL must beat: each row is a command line that the real parser takes."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from recipes import minigrid_table as table
from swirl_lightning.cli import swirl_cli
from swirl_lightning.training.rewards import MeanLogProb, ShuffledWithinGroup

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("row", table.ROWS)
def test_the_parser_takes_every_row(row, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # whatever it writes
    cli = swirl_cli(["--config", str(ROOT / table.CONFIG), *table.ROWS[row]], run=False)
    shuffled = row == "shuffled rewards"
    assert type(cli.model.reward) is (ShuffledWithinGroup if shuffled else MeanLogProb)
    assert (cli.model.anchor_weight == 0) == (shuffled or row == "SWIRL (paper)")


def test_means_and_errors_are_over_seeds(tmp_path):
    assert table.mean_and_error([1.0, 2.0, 6.0]) == (3.0, pytest.approx(math.sqrt(14 / 2 / 3)))
    assert table.cell("fwm/sampled/exact_match", [0.5, 0.7], signed=True) == "+60.0 ± 10.0"
    for seed, value in ((0, 0.25), (1, 0.75)):
        for row, gain in (("SFT", 0.0), ("Bootstrap", 0.125)):
            folder = tmp_path / f"seed{seed}" / row
            folder.mkdir(parents=True)
            found = {"test": {"earlier": {"exact": 0.0}, "last": {"exact": value + gain}}}
            (folder / "results.json").write_text(json.dumps(found))
    assert table.gather(tmp_path, [0, 1], "test") == {
        "SFT": {"exact": [0.25, 0.75]},
        "Bootstrap": {"exact": [0.375, 0.875]},
    }
