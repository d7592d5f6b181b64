"""``swirl.json`` of an exported folder: what rebuilds both models, as plain values that name no class and no path."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Collection, Mapping
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from swirl_lightning import backbones
from swirl_lightning.adapters import AdapterConfig
from swirl_lightning.backbones.base import BUILTIN_PREFIX, Backbone
from swirl_lightning.engine.drawing import SamplingConfig
from swirl_lightning.files.reading import small_text
from swirl_lightning.prompts import PromptTemplates
from swirl_lightning.world_model_module import WorldModelModule

Module = TypeVar("Module", bound=WorldModelModule)

FILE = "swirl.json"
ALL_LINEAR = "all-linear"
"""PEFT's name for all linear layers, the one text of ``target_modules`` that is no regular expression."""
_HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
_OF_THIS_MACHINE = (
    "model_name_or_path",
    "vqgan_path",
    "trust_remote_code",
    "attn_implementation",  # transformers takes the name of a repository for code, which it loads
    "encode_batch",
    "images_kept",
    "cuda_graphs",
    "speculative",
)


def public_name(name: str) -> str:
    """Name a base without a path of this machine: a hub name or ``builtin/...`` as it is, of a folder the last part."""
    return name if is_public(name) else Path(name).absolute().name


def is_public(name: str) -> bool:
    """Tell whether a base's name means the same on every machine."""
    return name.startswith(BUILTIN_PREFIX) or (not Path(name).exists() and _HUB_NAME.fullmatch(name) is not None)


def settings_of(module: WorldModelModule) -> dict[str, Any]:
    """Collect the settings of a module whose base is loaded."""
    backbone = module.backbone
    return {
        "base": {"name": public_name(backbone.name), "revision": backbone.revision, **module.base_identity},
        "label": module.label,
        "parts": module.base_parts,
        "lengths": backbone.chosen_lengths,
        "backbone": {"family": type(backbone).__name__, "options": _options(backbone)},
        "lora": {"r": module.lora.r, "alpha": module.lora.alpha, "target_modules": module.lora.target_modules},
        "shared_weights": module.shared_weights,
        "roles": [role.value for role in module.roles],
        "sampling": asdict(module.sampling),
        "templates": asdict(module.templates),
    }


def _options(backbone: Backbone) -> dict[str, Any]:
    """Options of a backbone that are its own and no path; lengths that were left to the data stay so."""
    found: dict[str, Any] = {}
    for name in _parameters(type(backbone)):
        value = getattr(backbone, name, None)
        if name == "dtype":
            value = str(value).removeprefix("torch.")
        if name not in backbone.open_lengths and (value is None or isinstance(value, str | int | float | bool)):
            found[name] = value
    return found


def _parameters(kind: type[Backbone]) -> list[str]:
    """Names of the options of a family that a shared folder may set."""
    names: dict[str, None] = {}
    for cls in kind.__mro__[: kind.__mro__.index(Backbone) + 1]:
        names |= dict.fromkeys(inspect.signature(cls).parameters)
    return [name for name in names if name not in ("self", "kwargs", *_OF_THIS_MACHINE)]


def read(folder: Path) -> dict[str, Any]:
    """Read the settings of an exported folder.

    Raises:
        FileNotFoundError: it has none.
        ValueError: they are no such settings.
    """
    path = folder / FILE
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder} has no {FILE}: give a folder that swirl export or a training has written (older versions wrote "
            "none: export such a run again, swirl export RUN --to FOLDER)"
        )
    try:
        found = json.loads(small_text(path))
        kinds = {"base": dict, "label": str, "backbone": dict, "lora": dict, "sampling": dict, "templates": dict}
        wrong = [name for name, kind in kinds.items() if not isinstance(found.get(name), kind)]
    except (ValueError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {error}") from None
    if wrong:
        raise ValueError(f"{path} is damaged: {', '.join(wrong)} missing or of another type")
    return dict(found)


def build_backbone(settings: dict[str, Any], base: str | None) -> Backbone:
    """Build the backbone that settings name: a family of this package, with its options alone, and no code of the hub.

    Args:
        settings: of :func:`read`.
        base: your own folder of the base; None takes the name in the settings, from the hub or the package.

    Raises:
        ValueError: it is a family of somebody's own, has unknown options, or its base is known by no public name.
    """
    family, options = settings["backbone"].get("family"), settings["backbone"].get("options", {})
    options = {key: value for key, value in options.items() if key != "attn_implementation"}  # of older exports
    kind = getattr(backbones, str(family)) if family in backbones.__all__ else None
    if not isinstance(kind, type) or not issubclass(kind, Backbone) or kind is Backbone:
        raise ValueError(f"its backbone {family!r} is none of this package: build it, and give it as backbone=...")
    name = settings["base"].get("name") if base is None else base
    if base is None and not (isinstance(name, str) and is_public(name) and "/" in name):
        raise ValueError(f"its base {name!r} is on no hub: give its folder as base=...")
    unknown = sorted(options.keys() - set(_parameters(kind)))
    if unknown:
        raise ValueError(f"{kind.__name__} has no options {unknown}, which {FILE} sets")
    built: Backbone = kind(name, **{"revision": settings["base"].get("revision"), **options})
    return built


def build(
    cls: type[Module],
    settings: dict[str, Any],
    base: str | None,
    backbone: Backbone | None = None,
    adapted: Collection[str] = (),
    arguments: Mapping[str, Any] = MappingProxyType({}),
) -> Module:
    """Build the module that settings describe; its base is not loaded yet.

    Args:
        cls: SWIRL.
        settings: of :func:`read`.
        base: as for :func:`build_backbone`.
        backbone: takes the place of the one in the settings.
        adapted: modules that the export has adapters of; they take the place of a regular expression in the settings,
            which may be made to be matched for ever.
        arguments: of the constructor, in place of those in the settings.

    Raises:
        TypeError: the class takes no such argument.
        ValueError: as in :func:`build_backbone`, or a setting is missing or none that there can be.
    """
    inspect.signature(cls).bind_partial(**arguments)
    lora = settings["lora"]
    try:
        targets = lora.get("target_modules")
        if isinstance(targets, str) and targets != ALL_LINEAR:
            targets = "|".join(map(re.escape, sorted(adapted)))
        options: dict[str, Any] = {
            "lora": AdapterConfig(lora["r"], lora["alpha"], target_modules=targets),
            "shared_weights": bool(settings.get("shared_weights", False)),
            "roles": tuple(settings.get("roles", ("fwm", "idm"))),
            "sampling": SamplingConfig(**settings["sampling"]),
            "templates": PromptTemplates(**settings["templates"]),
        }
        return cls(backbone or build_backbone(settings, base), **options | dict(arguments))
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{FILE} is damaged: {type(error).__name__}: {error}") from error
