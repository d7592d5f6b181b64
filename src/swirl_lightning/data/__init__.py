"""Transitions on their way to the model."""

from swirl_lightning.data.batch import TransitionBatch
from swirl_lightning.data.loader import TransitionLoader
from swirl_lightning.data.module import Split, TransitionDataModule

__all__ = ["Split", "TransitionBatch", "TransitionDataModule", "TransitionLoader"]
