"""A DataModule whose records are named by split and number, with so many in each split."""

from __future__ import annotations

from swirl_lightning.data import TransitionDataModule
from swirl_lightning.transition import Transition

SIZES = {"warmup": 7, "state_only": 12, "validation": 5, "test": 3}


class Data(TransitionDataModule):
    loads = ()

    def load_split(self, split):
        self.loads = (*self.loads, split)
        return [Transition(f"x{i}", f"y{i}", f"z{i}", id=f"{split}-{i}") for i in range(SIZES[split])]


def data(**options):
    return Data(**{"batch_size": 2, "seed": 5, "pairs_per_iteration": 8, **options})
