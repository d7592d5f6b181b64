"""Metrics of TextWorld against values computed by hand."""

from __future__ import annotations

import math

import pytest

from swirl_lightning.benchmarks.textworld import (
    EffectAccuracy,
    ExactStateMatch,
    Hallucination,
    Preservation,
    TextWorld,
)
from swirl_lightning.transition import Transition

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
        assert float(metric.compute().get(metric.name, math.nan)) == pytest.approx(value, nan_ok=True)


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
    counts = {name: int(count) for name, count in metrics["exact_match"].row_counts().items()}
    assert counts == {"exact_match": 4, "exact_match/open": 2, "exact_match/eat": 1, "exact_match/go": 1}
    assert "preservation/go" not in values
    assert {"exact_match/open", "hallucination/go", "rouge_l/eat"} < set(values)
    plain = TextWorld().state_metrics()
    assert set(plain.keys()) == {"effect_accuracy", "preservation", "hallucination", "exact_match", "rouge_l"}


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_nothing_seen_is_nan():
    assert all(float(value) != float(value) for value in TextWorld().state_metrics().compute().values())
