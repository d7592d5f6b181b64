"""Base of the callbacks that show the rollouts of a step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from swirl_lightning.callbacks.media import Media, media
from swirl_lightning.engine.ranges import check_ranges
from swirl_lightning.training.rollouts import Rollouts


def rollouts_of(outputs: Any) -> Rollouts | None:
    """Return the rollouts of a training step; None in warm-up and in replays."""
    found = outputs.get("rollouts") if isinstance(outputs, dict) else None
    return found if isinstance(found, Rollouts) else None


class RolloutWriter(Callback, ABC):
    """Base of callbacks that write some rollouts to the run's loggers: subclasses define :meth:`write`.

    Args:
        every_n_steps: optimiser steps between two writes; each phase starts with one.
        max_rows: number of transitions that are written.

    Raises:
        ValueError: a number is not positive.
    """

    def __init__(self, every_n_steps: int = 50, max_rows: int = 4) -> None:
        given = {"every_n_steps": every_n_steps, "max_rows": max_rows}
        check_ranges(type(self).__name__, given, every_n_steps="whole [1, inf)", max_rows="whole [1, inf)")
        self.every_n_steps, self.max_rows = every_n_steps, max_rows
        self._last: tuple[int, int] | None = None  # epoch and step of the last write

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write the first rollouts of each phase, then those of every ``every_n_steps``-th step."""
        rollouts, to = rollouts_of(outputs), media(trainer)
        if rollouts is None or not to:
            return
        epoch, step = trainer.current_epoch, trainer.global_step
        if self._last is None or self._last[0] != epoch or step - self._last[1] >= self.every_n_steps:
            self._last = (epoch, step)
            self.write(to, rollouts, step, pl_module)

    @abstractmethod
    def write(self, to: Media, rollouts: Rollouts, step: int, pl_module: LightningModule) -> None:
        """Write the rollouts of one step.

        Args:
            to: the run's loggers.
            rollouts: of this rank.
            step: number of the optimiser step.
            pl_module: the model.
        """
