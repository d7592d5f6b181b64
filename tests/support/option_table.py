"""Table of option names that the command reads before it imports the parser: ``make options`` writes it."""

from __future__ import annotations

import pkgutil
from importlib import import_module
from typing import Any

from jsonargparse import capture_parser

import swirl_lightning.backbones
import swirl_lightning.benchmarks
from swirl_lightning import SWIRL
from swirl_lightning.backbones.base import Backbone
from swirl_lightning.cli import swirl_cli
from swirl_lightning.console.option_names import TABLE
from swirl_lightning.console.parsing import options_of
from swirl_lightning.data import TransitionDataModule
from swirl_lightning.rollout_engines import RolloutEngine
from swirl_lightning.training.learners import Learner
from swirl_lightning.training.rewards import Reward


def collect() -> list[str]:
    """Return the names of all options: of the commands, of ours and Lightning's Trainer, and of the shipped classes."""
    parser = capture_parser(lambda: swirl_cli(["fit"]))
    subcommands: Any = parser._subcommands_action
    names = {
        text[2:].removesuffix("+").removesuffix(".help")
        for command in subcommands._name_parser_map.values()
        for action in command._actions
        for text in action.option_strings
        if text.startswith("--")
    }
    within: dict[str, list[type]] = {
        "model": [SWIRL],
        "model.backbone": _shipped(Backbone),
        "model.learner": _shipped(Learner),
        "model.reward": _shipped(Reward),
        "model.rollout_engine": _shipped(RolloutEngine),
        "data": _shipped(TransitionDataModule),
    }
    for place, classes in within.items():
        for each in classes:
            for option in options_of(each):
                parts = option.split(".")
                names |= {".".join([place, *parts[:n]]) for n in range(1, len(parts) + 1)}
    return sorted(name for name in names if not name.startswith("model.optimizer."))  # of the class that is chosen


def _shipped(base: Any) -> list[type]:
    """Return the classes of the package below a class."""
    for package in (swirl_lightning.backbones, swirl_lightning.benchmarks):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            import_module(module.name)
    found, left = [], [base]
    while left:
        left += (each := left.pop()).__subclasses__()
        if each.__module__.startswith("swirl_lightning.") and not each.__name__.startswith("_"):
            found.append(each)
    return found


if __name__ == "__main__":
    TABLE.write_text("\n".join(collect()) + "\n")
