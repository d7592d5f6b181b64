"""A small world of text: two digits, and actions that change them. Used by class path, too."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import random
import signal
import subprocess
import time
from typing import Any

from lightning.pytorch import Callback

from swirl_lightning.callbacks import end_other_ranks
from swirl_lightning.data import TransitionDataModule
from swirl_lightning.training.rewards import MeanLogProb, Scored
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
    """A signal after a step: the next batch has begun. With ``workers``, another process sends it to those, too."""

    def __init__(self, step: int, name: str = "SIGKILL", workers: bool = False) -> None:
        self.step, self.signal, self.workers = step, signal.Signals[name], workers

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == self.step:
            workers = [process.pid for process in multiprocessing.active_children()] if self.workers else []
            assert bool(workers) == self.workers
            if workers:
                subprocess.run(["kill", f"-{self.signal.value}", *map(str, workers)], check=True)
                time.sleep(0.5)
            os.kill(os.getpid(), self.signal)


class FailAt(Callback):
    """An error on one rank after a step; the others go on, or are busy for longer than any test lasts."""

    def __init__(self, step: int, rank: int, busy: bool = False) -> None:
        self.step, self.rank, self.busy = step, rank, busy
        end_other_ranks.GRACE_S = 1.0  # in this process, which no other test shares

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == self.step:
            if trainer.global_rank == self.rank:
                raise ValueError("record 17 is broken")
            if self.busy:
                time.sleep(3600)


class BrokenReward(MeanLogProb):
    """Gives ``value`` for the last rollout of its call number ``call`` (from 1), on one rank."""

    def __init__(self, call: int, value: float, rank: int = 0) -> None:
        super().__init__()
        self.call, self.value, self.rank, self._calls = call, value, rank, 0

    def __call__(self, scored: Scored) -> Any:
        self._calls += 1
        rewards = super().__call__(scored)
        if self._calls == self.call and int(os.environ.get("LOCAL_RANK", 0)) == self.rank:
            rewards[-1] = self.value
        return rewards


class BrokenModel(Callback):
    """Makes what a LoRA layer gives, its gradient, or the optimiser's moments NaN at a step, on one rank."""

    def __init__(self, step: int, what: str, rank: int = 0) -> None:
        self.step, self.what, self.rank = step, what, rank

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        if self.what == "moments" and trainer.global_step == self.step:
            for state in optimizer.state.values():
                state["exp_avg"].fill_(float("nan"))

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        if self.what == "moments":
            return

        def broken(tensor: Any) -> Any:
            now = trainer.global_step == self.step and trainer.global_rank == self.rank
            return tensor * float("nan") if now else tensor

        layer = next(m for name, m in pl_module.named_modules() if name.endswith("lora_B.fwm"))
        if self.what == "gradient":
            layer.weight.register_hook(broken)
        else:
            layer.register_forward_hook(lambda module, given, output: broken(output))
