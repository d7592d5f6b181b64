"""Every numeric option of every class that a configuration or a command names: nonsense is refused by name."""

from __future__ import annotations

import inspect
from types import NoneType
from typing import get_args, get_type_hints

import pytest
from jsonargparse import ArgumentError
from lightning.pytorch.cli import LightningArgumentParser

from support.numeric_options import ANY_NUMBER, BASE, INF, MADE_WITH, NAN, PLAIN, make, numbers
from swirl_lightning import SWIRL
from swirl_lightning.backbones import Chameleon, Liquid, TextLLM
from swirl_lightning.benchmarks.aurora import Aurora
from swirl_lightning.benchmarks.bytemorph import ByteMorph
from swirl_lightning.benchmarks.gedit import GEdit
from swirl_lightning.benchmarks.scienceworld import ScienceWorld
from swirl_lightning.benchmarks.stabletoolbench import StableToolBench
from swirl_lightning.benchmarks.worldprediction import WorldPrediction
from swirl_lightning.callbacks import HeldOutStates
from swirl_lightning.console.parsing import shorten
from swirl_lightning.data import JSONLTransitions
from swirl_lightning.engine.config import EngineConfig
from swirl_lightning.metrics.bert_score import BERTScore
from swirl_lightning.metrics.clip import CLIPEncoder
from swirl_lightning.metrics.embedding import EmbeddingSimilarity
from swirl_lightning.prepare.edit_corpora import main as edit_corpora
from swirl_lightning.prepare.labelled_clips import main as labelled_clips
from swirl_lightning.prepare.scienceworld import generate
from swirl_lightning.prepare.video_pairs import main as video_pairs
from swirl_lightning.rollout_engines import Generate
from swirl_lightning.training.learners import BestOfN
from swirl_lightning.training.rewards import ShuffledWithinGroup
from swirl_lightning.use.collapse import CollapseConfig
from swirl_lightning.use.commands import play
from swirl_lightning.use.labelling import LabelConfig
from swirl_lightning.use.planning import PlanConfig
from swirl_lightning.use.simulation import SimulateConfig

SUITES = (Aurora, ByteMorph, GEdit, ScienceWorld, StableToolBench, WorldPrediction)
COMMANDS = (LabelConfig, SimulateConfig, CollapseConfig, PlanConfig)
OTHERS = (BestOfN, ShuffledWithinGroup, EmbeddingSimilarity, EngineConfig, Generate, HeldOutStates, JSONLTransitions)
GIVEN = {
    **MADE_WITH,
    **{kind: {} for kind in (*PLAIN, *OTHERS, *COMMANDS)},
    **{kind: {"data_dir": "."} for kind in SUITES},
    BERTScore: {"model": "any"},
    CLIPEncoder: {"name_or_path": "any"},
    Chameleon: BASE,
}
OPTIONS = [(kind, name) for kind in GIVEN for name in numbers(kind)]
NUMBERS = (NAN, INF, -INF, 10**30, -(10**30), None)
NO_NUMBERS = ("x", "", [], {}, [1], "1 2")


def may_be_null(kind, name):
    owner = next(owner for owner in kind.__mro__ if name in inspect.signature(owner.__init__).parameters)
    return NoneType in get_args(get_type_hints(owner.__init__)[name])


def test_there_are_many_cases():
    assert len(OPTIONS) * (len(NUMBERS) + len(NO_NUMBERS)) > 1000


@pytest.mark.parametrize(("kind", "name"), OPTIONS, ids=lambda value: getattr(value, "__name__", value))
def test_what_is_no_value_is_refused_by_name(kind, name):
    for value in NUMBERS:
        if name in ANY_NUMBER or (value is None and may_be_null(kind, name)):
            continue
        with pytest.raises(ValueError, match=rf"\b{name}\b"):
            make(kind, **{**GIVEN[kind], name: value})


@pytest.mark.parametrize("kind", [kind for kind in GIVEN if kind is not SWIRL], ids=lambda kind: kind.__name__)
def test_what_is_no_number_is_refused_by_name(kind):
    parser = LightningArgumentParser(exit_on_error=False)
    parser.add_class_arguments(kind, "made", fail_untyped=False)
    for name, number in numbers(kind).items():
        for value in (*NO_NUMBERS, *((NAN, INF, 1.5) if number is int else ())):
            with pytest.raises(ArgumentError) as refused:
                parser.parse_object({"made": {**GIVEN[kind], name: value}})
            line = shorten(str(refused.value))
            assert f"made.{name}" in line
            assert len(line) < 500


@pytest.mark.parametrize(
    ("command", "given", "name"),
    [
        (play, ["none", "--port", "65536"], "play.port"),
        (play, ["none", "--port", "-1"], "play.port"),
        (video_pairs, ["none", "out", "--workers", "0"], "video_pairs.workers"),
        (edit_corpora, ["out.jsonl", "--aurora", "none", "--validation", "-1"], "edit_corpora.validation"),
        (labelled_clips, ["none.csv", "out", "--size", "-1"], "labelled_clips.size"),
        (lambda given: generate(".", **given), {"train": -1}, "scienceworld.train"),
        (lambda given: generate(".", **given), {"max_steps": 0}, "scienceworld.max_steps"),
    ],
)
def test_so_is_a_number_of_a_command(command, given, name):
    with pytest.raises(ValueError, match=rf"^{name} must lie in"):
        command(given)


@pytest.mark.parametrize("name", ["", "/none", "./no/such/folder", "a\0b", "a b", "x" * 200, "a/b/c", "-x", "x/"])
@pytest.mark.parametrize("kind", [Chameleon, Liquid, TextLLM])
def test_a_base_that_cannot_be_is_refused_by_name(kind, name):
    with pytest.raises(FileNotFoundError, match=r"^model_name_or_path .*: there is no such folder, and on the hub"):
        kind(name)
