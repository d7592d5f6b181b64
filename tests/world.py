"""A small world of text: two digits, and actions that change them. Used by class path, too."""

from __future__ import annotations

import itertools
import os
import random
import signal
from typing import Any

from lightning.pytorch import Callback

from swirl_lightning.data import TransitionDataModule
from swirl_lightning.transition import Transition

ACTIONS = {
    "inc": lambda a, b: ((a + 1) % 10, b),
    "dec": lambda a, b: (a, (b - 1) % 10),
    "swap": lambda a, b: (b, a),
}


class Digits(TransitionDataModule):
    """x = "37", z = "swap", y = "73"."""

    def __init__(self, size: int = 24, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.size = size

    def load_split(self, split: str) -> list[Transition]:
        everything = list(itertools.product(range(10), range(10), ACTIONS))
        random.Random(split).shuffle(everything)
        rows = []
        for n, (a, b, action) in enumerate(everything[: self.size]):
            c, d = ACTIONS[action](a, b)
            rows.append(Transition(f"{a}{b}", f"{c}{d}", action, id=f"{split}-{n}"))
        return rows


class KillAt(Callback):
    """SIGKILL after a step whose checkpoint is written: the next batch has begun."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)
