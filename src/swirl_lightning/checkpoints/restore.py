"""Loading of a module from a checkpoint, without a Trainer. Nothing in a checkpoint becomes configuration or code."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from jsonargparse import ArgumentError
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.cli import LightningArgumentParser
from yaml import YAMLError

from swirl_lightning.adapters import AdapterConfig
from swirl_lightning.checkpoints.file import check_file
from swirl_lightning.checkpoints.fit import check_fits
from swirl_lightning.checkpoints.state import as_written, own_state
from swirl_lightning.console.parsing import shorten
from swirl_lightning.console.shipped import import_shipped
from swirl_lightning.files.reading import read_words
from swirl_lightning.files.safe_torch import load_torch
from swirl_lightning.files.safe_yaml import load
from swirl_lightning.world_model_module import WorldModelModule

Module = TypeVar("Module", bound=WorldModelModule)
Built = TypeVar("Built", bound=LightningModule | LightningDataModule)


def restore(
    cls: type[Module], path: str | Path, map_location: Any, config_path: str | Path | None, arguments: dict[str, Any]
) -> Module:
    """Load a module: see :meth:`swirl_lightning.SWIRL.load_from_checkpoint`."""
    if foreign := sorted({"strict", "weights_only", "hparams_file"} & arguments.keys()):
        raise TypeError(
            f"load_from_checkpoint has no {' and no '.join(foreign)}: all of the adapters and no code is loaded, and "
            "settings come from config_path or the constructor's arguments"
        )
    check_file(path)
    checkpoint = load_torch(path, map_location)
    if config_path is not None:
        module = from_config(cls, config_path, arguments)
    elif "backbone" in arguments:
        module = cls(**{"lora": _lora(own_state(checkpoint)), **arguments})
    else:
        module = from_config(cls, config_of(path), arguments)
    return load_into(module, checkpoint)


def load_into(
    module: Module, checkpoint: dict[str, Any], on_load: Callable[[Module, dict[str, Any]], None] | None = None
) -> Module:
    """Load the base of a module and a checkpoint's adapters, onto the device of the latter, in eval mode.

    Args:
        module: gets them.
        checkpoint: of a run; of an export, adapters and their settings alone.
        on_load: takes the place of the module's ``on_load_checkpoint``, which may want what an export lacks.

    Raises:
        ValueError: the adapters belong to another base or other settings, or tensors are missing or of other shapes.
    """
    check_fits(checkpoint, module)
    module.configure_model()
    (on_load or type(module).on_load_checkpoint)(module, checkpoint)
    with as_written("the adapters"):
        module.load_state_dict(checkpoint["state_dict"])
    return module.to(next(iter(checkpoint["state_dict"].values())).device).eval()


def from_config(cls: type[Built], path: str | Path, arguments: dict[str, Any], key: str = "model") -> Built:
    """Build the ``model`` or the ``data`` of a run's configuration as ``swirl`` does; weights are not loaded yet.

    Args:
        cls: SWIRL or TransitionDataModule, or the subclass that the configuration must name.
        path: YAML of the user's own: the classes that it names are imported and called.
        arguments: constructor arguments that take the place of the file's.
        key: ``model`` or ``data``.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it has no such key, or one that cannot be built.
    """
    try:
        found = load(read_words(Path(path)))
    except YAMLError as error:
        raise ValueError(f"{path} is no configuration: {' '.join(str(error).split())}") from None
    if not isinstance(found, dict) or key not in found:
        raise ValueError(f"{path} has no key {key!r}: give the config.yaml of a run, or backbone=...")
    import_shipped()  # the parser knows the short names of imported classes alone
    parser = LightningArgumentParser(exit_on_error=False)
    parser.add_lightning_class_args(cls, key, subclass_mode=True)
    # the class with the file's arguments, not yet called
    parser.add_instantiator(lambda kind, *args, **given: partial(kind, *args, **given), cls, subclasses=True)
    try:
        build = parser.instantiate_classes(parser.parse_object({key: found[key]}))[key]
    except ArgumentError as error:
        raise ValueError(f"{path}: {shorten(str(error))}") from None
    built: Built = build(**arguments)
    return built


def config_of(path: str | Path) -> Path:
    """Find ``config.yaml`` of a checkpoint's run, in its folder or the one above."""
    folder = Path(path).absolute().parent
    for place in (folder, folder.parent):
        if (place / "config.yaml").is_file():
            return place / "config.yaml"
    raise FileNotFoundError(
        f"no config.yaml in {folder} or {folder.parent}, and a checkpoint holds adapters alone: give backbone=... "
        "(and whatever else the run had set), or config_path=..., the config.yaml of the run"
    )


def _lora(state: dict[str, Any]) -> AdapterConfig:
    """Return rank and α of a checkpoint: numbers, the only settings that are taken from it."""
    saved = state.get("lora", {})
    for name in ("r", "alpha"):
        value = saved.get(name)
        if type(value) is not int or value < 1:
            raise ValueError(f"the checkpoint's lora.{name} is no positive integer but {value!r}: give lora=...")
    return AdapterConfig(r=saved["r"], alpha=saved["alpha"])
