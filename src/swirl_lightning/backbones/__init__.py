"""Model families that SWIRL can train. Each is imported at first use."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from swirl_lightning.backbones.base import Backbone
    from swirl_lightning.backbones.chameleon import Chameleon
    from swirl_lightning.backbones.emu3 import Emu3
    from swirl_lightning.backbones.liquid import Liquid
    from swirl_lightning.backbones.text import TextLLM
    from swirl_lightning.backbones.vlm import VLM
    from swirl_lightning.engine.grammar import Grammar

_HOMES = {
    "Backbone": "backbones.base",
    "Chameleon": "backbones.chameleon",
    "Emu3": "backbones.emu3",
    "Grammar": "engine.grammar",
    "Liquid": "backbones.liquid",
    "TextLLM": "backbones.text",
    "VLM": "backbones.vlm",
}

__all__ = ["VLM", "Backbone", "Chameleon", "Emu3", "Grammar", "Liquid", "TextLLM"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; there are: {sorted(_HOMES)}")
    return getattr(import_module(f"swirl_lightning.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
