"""Scores of each transition agree with the tables' means."""

from __future__ import annotations

import pytest

from support.swirl import build, randomize
from support.trainers import quiet_trainer
from support.world import Digits
from swirl_lightning.callbacks import RowScores
from swirl_lightning.callbacks.row_scores import read


@pytest.mark.parametrize("roles", [("fwm", "idm"), ("idm",)])
def test_means_of_rows_are_those_of_the_table(gemma_path, tmp_path, roles):
    module = build(gemma_path, roles=roles)
    randomize(module)
    run = quiet_trainer(tmp_path, RowScores())
    (table,) = run.test(module, Digits(size=16, batch_size=5), verbose=False)
    rows = read(tmp_path)
    assert len(rows) == len(Digits(size=16).split("test"))
    names = {name for row in rows.values() for name in row}
    assert {name.split("/")[0] for name in names} == set(roles)
    for name in names:
        assert sum(row[name] for row in rows.values()) / len(rows) == pytest.approx(table[f"test/{name}"], abs=1e-6)
    run.test(module, Digits(size=16, batch_size=5), verbose=False)
    assert read(tmp_path) == rows, "a second test takes the place of the first"
