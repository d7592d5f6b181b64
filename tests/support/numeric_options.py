"""Classes with numeric options, and how an object of each is made."""

from __future__ import annotations

import inspect
from types import NoneType
from typing import get_args, get_type_hints

from swirl_lightning import SWIRL, AdapterConfig, EvaluationConfig, GRPOConfig, OptimConfig, PhaseSwitch, SamplingConfig
from swirl_lightning.backbones import VLM, Emu3, Liquid, TextLLM
from swirl_lightning.benchmarks.mind2web import Mind2Web
from swirl_lightning.benchmarks.minigrid import MiniGrid
from swirl_lightning.benchmarks.textworld import TextWorld
from swirl_lightning.callbacks import (
    ActionTable,
    CollapseWatch,
    MemoryReport,
    Predictions,
    Throughput,
    TransitionImages,
)
from swirl_lightning.data.module import TransitionDataModule
from swirl_lightning.judge.client import Judge
from swirl_lightning.prepare.video_pairs import PairConfig
from swirl_lightning.training.rewards import MeanLogProb

BASE = {"model_name_or_path": "builtin/tiny-liquid"}
MADE_WITH = {
    SWIRL: {"backbone": Liquid(**BASE)},
    Judge: {"model": "any"},
    **{kind: {"data_dir": "."} for kind in (Mind2Web, TextWorld)},
    **dict.fromkeys((Emu3, Liquid, TextLLM, VLM), BASE),
}
PLAIN = (
    AdapterConfig,
    GRPOConfig,
    OptimConfig,
    SamplingConfig,
    EvaluationConfig,
    PhaseSwitch,
    MeanLogProb,
    PairConfig,
    MiniGrid,
    ActionTable,
    CollapseWatch,
    MemoryReport,
    Predictions,
    Throughput,
    TransitionImages,
)
ANY_NUMBER = {"seed", "split_seed"}
NAN, INF = float("nan"), float("inf")


def numbers(kind):
    """Options of a class that are numbers, its bases' included: name -> int or float."""
    found = {}
    for owner in reversed(kind.__mro__):
        own = vars(owner).get("__init__")
        if not inspect.isfunction(own) or not owner.__module__.startswith("swirl_lightning"):
            continue
        for name, hint in get_type_hints(own).items():
            kinds = [kind for kind in get_args(hint) or [hint] if kind is not NoneType]
            if name in inspect.signature(own).parameters and kinds in ([int], [float]):
                found[name] = kinds[0]
    return found


def make(kind, **options):
    made = kind(**(MADE_WITH.get(kind, {}) | options))
    if isinstance(made, TransitionDataModule):
        made.check()  # what `setup` does first
    return made
