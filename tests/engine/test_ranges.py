"""No option takes a number that means nothing: each is refused by name where the object is made."""

from __future__ import annotations

import re

import numpy as np
import pytest

from support.cli import here
from support.numeric_options import ANY_NUMBER, INF, MADE_WITH, NAN, PLAIN, make, numbers
from swirl_lightning import SWIRL, AdapterConfig, EvaluationConfig, GRPOConfig, OptimConfig, SamplingConfig
from swirl_lightning.backbones import Liquid, TextLLM
from swirl_lightning.benchmarks.minigrid import MiniGrid
from swirl_lightning.benchmarks.textworld import TextWorld
from swirl_lightning.engine.ranges import check_ranges
from swirl_lightning.schedule import PhaseSchedule
from swirl_lightning.training.rewards import MeanLogProb

CASES = [
    pytest.param(kind, name, value, id=f"{kind.__name__}-{name}-{value}")
    for kind in (*MADE_WITH, *PLAIN)
    for name, number in numbers(kind).items()
    if name not in ANY_NUMBER
    for value in ((-1,) if number is int else (NAN, INF, -INF))
]


def test_there_are_many_of_them():
    assert len(CASES) > 80


@pytest.mark.parametrize(("kind", "name", "value"), CASES)
def test_a_number_without_meaning_is_refused_by_name(kind, name, value):
    with pytest.raises(ValueError, match=name.removesuffix("_size") if kind is MiniGrid else name):
        make(kind, **{name: value})


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        (AdapterConfig, "r", 0),
        (AdapterConfig, "alpha", 0),
        (AdapterConfig, "dropout", 1.0),
        (GRPOConfig, "epsilon", 0.0),
        (GRPOConfig, "idm_group_size", 1),
        (OptimConfig, "lr", 0.0),
        (MeanLogProb, "floor", 0.0),
        (MiniGrid, "batch_size", 0),
        (MiniGrid, "warmup_batch_size", 0),
        (MiniGrid, "eval_batch_size", 0),
        (SWIRL, "idm_state_noise", 1.0),
    ],
)
def test_so_is_the_end_of_an_open_range(kind, name, value):
    with pytest.raises(ValueError, match=rf"{name} must lie in .*, got {value}$"):
        make(kind, **{name: value})


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (AdapterConfig, "r"),
        (EvaluationConfig, "best_of"),
        (GRPOConfig, "group_size"),
        (GRPOConfig, "idm_group_size"),
        (GRPOConfig, "num_iterations"),
        (Liquid, "max_action_tokens"),
        (MiniGrid, "labelled_per_batch"),
        (MiniGrid, "num_workers"),
        (MiniGrid, "warmup_size"),
        (TextLLM, "max_action_tokens"),
        (TextLLM, "max_state_tokens"),
        (TextWorld, "quest_length"),
        (TextWorld, "test_size"),
    ],
)
def test_what_would_fill_the_memory_or_never_end_is_refused_by_name(kind, name):
    with pytest.raises(ValueError, match=rf"{name} must lie in .*, got 1000000000$"):
        make(kind, **{name: 10**9})


@pytest.mark.parametrize("value", [1e-300, 1e-40, 1e-7])
def test_a_temperature_by_which_no_logit_can_be_divided_is_refused_by_name(value):
    with pytest.raises(ValueError, match=r"model\.sampling\.temperature must be 0 or at least 1e-06"):
        SamplingConfig(temperature=value)


@pytest.mark.parametrize(
    ("interval", "inside", "outside"),
    [
        ("[0, 1]", [0, 0.5, 1], [-0.1, 1.1, NAN]),
        ("(0, 1)", [0.5], [0, 1, NAN, INF]),
        ("[2, inf)", [2, 10**9], [1, INF, NAN]),
        ("(-inf, 0)", [-10.0], [0, -INF, NAN]),
        ("[1, inf) or null", [None, 1], [0]),
    ],
)
def test_intervals_are_read_as_in_mathematics(interval, inside, outside):
    for value in inside:
        check_ranges("here", {"x": value, "other": NAN}, x=interval)
    for value in outside:
        with pytest.raises(ValueError, match=r"^here\.x must lie in"):
            check_ranges("here", {"x": value}, x=interval)


@pytest.mark.parametrize(
    ("interval", "value", "told"),
    [
        ("whole [1, inf)", 2.5, "an integer in [1, inf), got 2.5"),
        ("whole [1, inf)", "8", "an integer in [1, inf), got '8'"),
        ("whole [1, inf) or null", INF, "an integer in [1, inf) or null, got inf"),
        ("whole [1, inf)", None, "an integer in [1, inf), got None"),
        ("[0, 1]", "0.5", "a number in [0, 1], got '0.5'"),
        ("[0, 1]", None, "a number in [0, 1], got None"),
    ],
)
def test_what_is_no_number_or_no_whole_one_is_told(interval, value, told):
    with pytest.raises(ValueError, match=rf"^{re.escape(f'here.x must be {told}')}$"):
        check_ranges("here", {"x": value}, x=interval)


def test_integers_of_numpy_are_some_and_truth_values_are_none():
    check_ranges("here", {"x": np.int64(3)}, x="whole [1, inf)")
    with pytest.raises(ValueError, match=r"must be an integer in .*, got True"):
        check_ranges("here", {"x": True}, x="whole [1, inf)")


@pytest.mark.parametrize("name", ["r", "alpha"])
def test_what_a_checkpoint_keeps_is_an_int_of_python(name):
    """A run with one of NumPy was trained, and its checkpoint could not be read."""
    with pytest.raises(ValueError, match=rf"model\.lora\.{name} must be an int, got"):
        AdapterConfig(**{name: np.int64(4)})


@pytest.mark.parametrize(
    ("kind", "name"),
    [(MiniGrid, "batch_size"), (GRPOConfig, "group_size"), (AdapterConfig, "r"), (PhaseSchedule, "warmup_epochs")],
)
def test_no_option_takes_half_of_one(kind, name):
    with pytest.raises(ValueError, match=rf"{name} must be an integer in .*, got 2\.5$"):
        make(kind, **{name: 2.5})


def test_the_command_says_it_in_one_line(capsys):
    with pytest.raises(SystemExit) as end:
        here("fit", "-c", "configs/minigrid_quickstart.yaml", "--model.optim.fwm.lr", ".nan")
    assert str(end.value.code) == "error: model.optim.lr must lie in (0, inf), got nan"


def test_a_number_larger_than_integers_is_told_as_that():
    check_ranges("here", {"x": 2.0**62}, x="(0, inf)")
    with pytest.raises(ValueError, match=r"^here\.x must lie in \(0, inf\) and be smaller than 2\^63, got 1e\+20$"):
        check_ranges("here", {"x": 1e20}, x="(0, inf)")
