"""Reading, checking and batching of transitions. Each name is imported at first use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from swirl_lightning.lazy_names import lazy_names

if TYPE_CHECKING:
    from swirl_lightning.data.batch import TransitionBatch
    from swirl_lightning.data.loader import TransitionLoader
    from swirl_lightning.data.module import Split, TransitionDataModule
    from swirl_lightning.data.records import JSONLTransitions
    from swirl_lightning.data.token_cache import StateTokens

_HOMES = {
    "JSONLTransitions": "records",
    "Split": "module",
    "StateTokens": "token_cache",
    "TransitionBatch": "batch",
    "TransitionDataModule": "module",
    "TransitionLoader": "loader",
}

__all__ = [
    "JSONLTransitions",
    "Split",
    "StateTokens",
    "TransitionBatch",
    "TransitionDataModule",
    "TransitionLoader",
]

__getattr__, __dir__ = lazy_names(__name__, {name: f"swirl_lightning.data.{home}" for name, home in _HOMES.items()})
