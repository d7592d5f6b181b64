"""Reading, checking and batching of transitions."""

from swirl_lightning.data.batch import TransitionBatch
from swirl_lightning.data.loader import TransitionLoader
from swirl_lightning.data.module import Split, TransitionDataModule
from swirl_lightning.data.records import JSONLTransitions
from swirl_lightning.data.token_cache import StateTokens

__all__ = [
    "JSONLTransitions",
    "Split",
    "StateTokens",
    "TransitionBatch",
    "TransitionDataModule",
    "TransitionLoader",
]
