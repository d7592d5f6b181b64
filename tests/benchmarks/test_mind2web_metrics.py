from __future__ import annotations

import pytest

from swirl_lightning.benchmarks.mind2web.metrics import (
    ElementAccuracy,
    OperationF1,
    StepSuccess,
    WebAction,
    operation_f1,
    parse_action,
)
from swirl_lightning.transition import Transition


def test_parts_of_an_action():
    assert parse_action("[button]  Search -> CLICK") == WebAction("[button] Search", "CLICK")
    assert parse_action("[a] b -> c -> SELECT: x: y") == WebAction("[a] b -> c", "SELECT x: y")
    assert parse_action("nonsense") == WebAction("nonsense", "")


def test_operation_f1_by_hand():
    assert operation_f1("TYPE New York", "TYPE York") == pytest.approx(0.8)  # precision 2/3, recall 1
    assert operation_f1("CLICK", "CLICK") == 1
    assert operation_f1("CLICK", "TYPE a") == operation_f1("", "CLICK") == 0
    assert operation_f1("", "") == 1


def test_macro_average_over_tasks_by_hand():
    def row(task, action):
        return Transition("x", "y", action, meta={"task": task})

    rows = [row("t1", "[a] b -> TYPE: New York"), row("t1", "[a] b -> CLICK"), row("t2", "[c] d -> CLICK")]
    predicted = ["[a]  b -> TYPE: York", "[a] c -> CLICK", None]
    options = {"group_by": "task", "categories": {"t1": "site", "t2": "domain", "t3": "domain"}}
    found = {}
    for metric in (ElementAccuracy(**options), OperationF1(**options), StepSuccess(**options)):
        metric.update(predicted, rows)
        found |= {key: float(value) for key, value in metric.compute().items()}
    assert found == pytest.approx(
        {
            "element_accuracy": (0.5 + 0) / 2,
            "element_accuracy/site": 0.5,
            "element_accuracy/domain": 0,
            "operation_f1": (0.9 + 0) / 2,
            "operation_f1/site": 0.9,
            "operation_f1/domain": 0,
            "step_success": 0,
            "step_success/site": 0,
            "step_success/domain": 0,
        }
    )
    sure = StepSuccess(**options)
    sure.update(["[c]   d -> CLICK"], rows[2:])
    assert float(sure.compute()["step_success"]) == 1
