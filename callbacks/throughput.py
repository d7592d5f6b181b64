"""Logging of speed and memory in training."""

from __future__ import annotations

import sys
import time
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer

from swirl_lightning.engine.ranges import check_ranges
from swirl_lightning.memory import GIB

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]


class Throughput(Callback):
    """Logs tokens per second, seconds per optimiser step and peak memory.

    - ``throughput/tokens_per_second``: tokens generated, scored and trained on, on all ranks.
    - ``throughput/seconds_per_step``: with data loading, without validation.
    - ``throughput/peak_memory_gib``: of the main process: on its GPU, or in RAM where there is none.

    Args:
        every_n_steps: optimiser steps between two figures; None for ``Trainer.log_every_n_steps``.

    Raises:
        ValueError: ``every_n_steps`` is not positive.

    Example::

        >>> from swirl_lightning.callbacks import Throughput
        >>> callback = Throughput(every_n_steps=10)
    """

    def __init__(self, every_n_steps: int | None = None) -> None:
        check_ranges("Throughput", {"every_n_steps": every_n_steps}, every_n_steps="whole [1, inf) or null")
        self.every_n_steps = every_n_steps
        self._time, self._pause = 0.0, 0.0
        self._tokens = self._step = 0

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Start the clock."""
        self._time = time.monotonic()
        self._tokens, self._step = pl_module.tokens_seen, trainer.global_step

    def on_validation_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Stop the clock."""
        self._pause = time.monotonic()

    def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Restart the clock."""
        self._time += time.monotonic() - self._pause

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Log after ``every_n_steps`` steps."""
        steps = trainer.global_step - self._step
        # Lightning takes 0 for its own, and a batch within an accumulation window ends no step
        if not trainer.loggers or steps < (self.every_n_steps or max(1, trainer.log_every_n_steps)):  # type: ignore[attr-defined]
            return
        seconds = time.monotonic() - self._time
        tokens = torch.tensor(float(pl_module.tokens_seen - self._tokens), device=pl_module.device)
        total = float(trainer.strategy.reduce(tokens, reduce_op="sum"))
        self.on_train_start(trainer, pl_module)
        figures = {"tokens_per_second": total / seconds, "seconds_per_step": seconds / steps}
        memory = _peak_memory(pl_module.device)
        if memory is not None:
            figures["peak_memory_gib"] = memory / GIB
        for logger in trainer.loggers:  # writes on the main process only
            logger.log_metrics({f"throughput/{k}": v for k, v in figures.items()}, trainer.global_step)


def _peak_memory(device: torch.device) -> int | None:
    """Return the peak memory in bytes; None if the platform does not tell."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if resource is None:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts in KiB
