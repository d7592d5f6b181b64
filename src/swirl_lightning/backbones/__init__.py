"""Model families that SWIRL can train. Each is imported at first use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from swirl_lightning.lazy_names import lazy_names

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

__getattr__, __dir__ = lazy_names(__name__, {name: f"swirl_lightning.{home}" for name, home in _HOMES.items()})
