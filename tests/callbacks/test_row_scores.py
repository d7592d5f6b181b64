"""Scores of each transition agree with the tables' means."""

from __future__ import annotations

from dataclasses import replace

import pytest
from torchmetrics import MetricCollection

from support.judge_server import KEY, serving
from support.swirl import build, randomize
from support.trainers import quiet_trainer
from support.world import Digits
from swirl_lightning.callbacks import RowScores
from swirl_lightning.callbacks.held_out_states import HeldOutStates
from swirl_lightning.callbacks.predictions import Predictions
from swirl_lightning.callbacks.row_scores import read
from swirl_lightning.evaluation import EvaluationConfig
from swirl_lightning.judge import Judge
from swirl_lightning.judge.metric import JudgeScore
from swirl_lightning.metrics.exact_match import ExactMatch


class Unlucky(ExactMatch):
    def update(self, predictions, rows):
        raise RuntimeError("out of luck")


def test_an_evaluation_that_fails_leaves_no_listener(gemma_path, tmp_path):
    class Fails(Digits):
        def action_metrics(self):
            return MetricCollection({"fails": Unlucky("action")})

    module = build(gemma_path)
    run = quiet_trainer(tmp_path, RowScores(), Predictions(), HeldOutStates())
    for stage in (run.test, run.validate):
        with pytest.raises(RuntimeError, match="out of luck"):
            stage(module, Fails(size=4), verbose=False)
        assert module.evaluator.listeners == []
        assert module.evaluator.generations is None


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
    # of an earlier test on two devices
    (tmp_path / "row_scores" / "rank1.jsonl").write_text('{"id": "test-0", "fwm/greedy/exact_match": 7.0}\n')
    run.test(module, Digits(size=16, batch_size=5), verbose=False)
    assert read(tmp_path) == rows, "a second test takes the place of the first"


def test_a_model_that_was_not_asked_about_a_row_has_no_score_there(gemma_path, tmp_path):
    """The IDM reads no row without a state after; the table leaves it out, too."""

    class Ahead(Digits):
        def load_split(self, split):
            first, *rest = super().load_split(split)
            return [replace(first, after=None), *rest]

    module = build(gemma_path)
    module.configure_model()
    quiet_trainer(tmp_path, RowScores()).test(module, Ahead(size=2), verbose=False)
    first, second = read(tmp_path).values()
    assert not any(name.startswith("idm/") for name in first)
    assert any(name.startswith("idm/") for name in second)


def test_a_judge_is_not_asked_again(gemma_path, tmp_path, monkeypatch):
    class Judged(Digits):
        def action_metrics(self):
            metrics = super().action_metrics()
            judge = Judge("grader", server.url, api_key_env="JUDGE_KEY", cache_dir=str(tmp_path), timeout=5)
            metrics.add_metrics({"judge": JudgeScore(judge, "action")})
            return metrics

    monkeypatch.setenv("JUDGE_KEY", KEY)
    module = build(gemma_path, evaluation=EvaluationConfig(modes=("greedy",)))
    module.configure_model()
    with serving() as server:
        (table,) = quiet_trainer(tmp_path, RowScores()).test(module, Judged(size=4, batch_size=4), verbose=False)
    assert len(server.requests) <= table["test/idm/greedy/judge_asked"] == 4
    rows = read(tmp_path).values()
    assert all(row.keys() == {"fwm/greedy/exact_match", "idm/greedy/exact_match"} for row in rows)
