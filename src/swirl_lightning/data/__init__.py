"""Reading, checking and batching of transitions. Each name is imported at first use."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

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


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; there are: {sorted(_HOMES)}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
