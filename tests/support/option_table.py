"""Table of option names that the command reads before it imports the parser: ``make options`` writes it."""

from __future__ import annotations

import inspect
from dataclasses import is_dataclass
from types import ModuleType
from typing import Any, get_args

import torch
from jsonargparse import capture_parser
from lightning.fabric.plugins import environments
from lightning.pytorch import Callback, accelerators, callbacks, loggers, plugins, profilers, strategies
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

import swirl_lightning.callbacks
from swirl_lightning import SWIRL
from swirl_lightning.backbones.base import Backbone
from swirl_lightning.cli import swirl_cli
from swirl_lightning.console.option_names import TABLE, minor_version
from swirl_lightning.console.shipped import import_shipped
from swirl_lightning.data import TransitionDataModule
from swirl_lightning.judge import Judge
from swirl_lightning.rollout_engines import RolloutEngine
from swirl_lightning.training.learners import Learner
from swirl_lightning.training.rewards import Reward

OPEN = (loggers.CometLogger, loggers.WandbLogger)
"""Classes with options of a package that may be missing, or be there in any version."""

PLUGINS = (plugins.CheckpointIO, plugins.ClusterEnvironment, plugins.LayerSync, plugins.Precision)

FOREIGN = {
    "trainer": "lightning",
    "trainer.callbacks": "torch",  # to which some of Lightning's hand their options on
    "trainer.logger": "torch",
    "trainer.strategy": "torch",
    "model.optimizer": "torch",
}
"""Name -> package whose version decides which options there are below it."""


def places() -> dict[str, list[type]]:
    """Return options whose value is a class, with the classes that come with the package and its libraries."""
    return {
        "model": [SWIRL],
        "model.backbone": _shipped(Backbone),
        "model.learner": _shipped(Learner),
        "model.optimizer": _exported(torch.optim.Optimizer, torch.optim),
        "model.reward": _shipped(Reward),
        "model.rollout_engine": _shipped(RolloutEngine),
        "data": _shipped(TransitionDataModule),
        "data.judge": _shipped(Judge),
        "trainer.accelerator": _exported(accelerators.Accelerator, accelerators),
        "trainer.callbacks": _exported(Callback, callbacks, swirl_lightning.callbacks),
        "trainer.logger": _exported(loggers.Logger, loggers),
        "trainer.plugins": [each for base in PLUGINS for each in _exported(base, plugins, environments)],
        "trainer.profiler": _exported(profilers.Profiler, profilers),
        "trainer.strategy": _exported(strategies.Strategy, strategies),
    }


def collect() -> list[str]:
    """Return the lines of the table: options of the commands, of Lightning's Trainer and of the classes of `places`."""
    parsers: list[Any] = [capture_parser(lambda: swirl_cli([name])) for name in LightningCLI.subcommands()]  # noqa: B023
    names: dict[str, set[str]] = {
        text[2:].removesuffix("+").removesuffix(".help"): set()
        for parser in parsers
        for command in parser._subcommands_action._name_parser_map.values()
        for action in command._actions
        for text in action.option_strings
        if text.startswith("--")
    }
    lines = [f"{name} = {package} {minor_version(package)}" for name, package in FOREIGN.items()]
    for place, classes in places().items():
        owners: dict[str, set[str]] = {}
        for each in classes:
            for option in options_of(each, skip=place == "model.optimizer"):
                owners.setdefault(f"{place}.{option}", set()).add(each.__name__)
        every = {each.__name__ for each in classes}
        assert len(every) == len(classes), f"{place}: two classes of one name"
        names |= {name: set() if owned == every else owned for name, owned in owners.items()}
        lines.append(" ".join([f"{place}:", *sorted(every - {each.__name__ for each in OPEN})]))
    return sorted(lines + [" ".join([name, *sorted(owned)]) for name, owned in names.items()])


def options_of(owner: type, skip: bool = False) -> set[str]:
    """Return the options of a class, those of its dataclasses included, with dots, and what stands above them.

    Args:
        owner: the class.
        skip: leave out the first argument, which is no option.
    """
    parser = LightningArgumentParser(exit_on_error=False)
    parser.add_class_arguments(owner, fail_untyped=False, skip={1} if skip else set())
    found = {action.dest: action for action in parser._actions if action.dest in parser.get_defaults()}
    names = set(found)
    for name, action in found.items():
        for kind in get_args(getattr(action, "_typehint", None)):  # of a dataclass or None
            if is_dataclass(kind):
                names |= {f"{name}.{option}" for option in options_of(kind)}
    return {".".join(name.split(".")[:n]) for name in names for n in range(1, name.count(".") + 2)}


def _shipped(base: Any) -> list[type]:
    """Return the classes of the package below a class, or that one."""
    import_shipped()
    found, left = [], [base]
    while left:
        left += (each := left.pop()).__subclasses__()
        ours = each.__module__.startswith("swirl_lightning.") and not each.__name__.startswith("_")
        if ours and not inspect.isabstract(each):
            found.append(each)
    return found


def _exported(base: type, *modules: ModuleType) -> list[type]:
    """Return the classes below a class that modules show."""
    shown = [value for module in modules for value in vars(module).values() if inspect.isclass(value)]
    return [each for each in dict.fromkeys(shown) if issubclass(each, base) and each is not base]


if __name__ == "__main__":
    TABLE.write_text("\n".join(collect()) + "\n")
