"""Helpers of several callbacks: TensorBoard's writer, a step's rollouts, when to write."""

from __future__ import annotations

import os
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from swirl_lightning.training.rollouts import Rollouts


def tensorboard(trainer: Trainer) -> Any | None:
    """TensorBoard's ``SummaryWriter`` on the main process where there is one, otherwise None."""
    if trainer.is_global_zero:
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                return logger.experiment
    return None


def rollouts_of(outputs: Any) -> Rollouts | None:
    """The rollouts that a training step returned; None in warm-up and in replays."""
    found = outputs.get("rollouts") if isinstance(outputs, dict) else None
    return found if isinstance(found, Rollouts) else None


class EveryNSteps:
    """Due with the first rollouts of each phase, and ``n`` optimiser steps after it was last due.

    Args:
        n: number of optimiser steps.

    Raises:
        ValueError: ``n`` is not positive.
    """

    def __init__(self, n: int) -> None:
        if n < 1:
            raise ValueError(f"every_n_steps must be at least 1, got {n}")
        self.n = n
        self._last: tuple[int, int] | None = None  # epoch, step

    def due(self, trainer: Trainer) -> bool:
        """Whether to write now; asking counts as writing."""
        now = (trainer.current_epoch, trainer.global_step)
        if self._last is not None and self._last[0] == now[0] and now[1] - self._last[1] < self.n:
            return False
        self._last = now
        return True


def phase_name(pl_module: LightningModule) -> str:
    """Name of the current phase."""
    return str(pl_module.phase.name)  # type: ignore[union-attr]


def table_cell(text: object, longest: int = 300) -> str:
    """A text as one cell of a Markdown table."""
    line = " ".join(str(text).split())
    line = line if len(line) <= longest else line[: longest - 1] + "…"
    # as entities: TensorBoard's Markdown knows no backslash before some of these
    return "".join(f"&#{ord(c)};" if c in "&\\`*_|<>[]#~" else c for c in line)


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def log_dir(trainer: Trainer) -> str | None:
    """The run's folder. Asks all ranks: every one of them must call it."""
    folder = trainer.log_dir
    return None if folder is None else os.fspath(folder)
