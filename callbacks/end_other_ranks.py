"""An end to the other processes of a run when the one that started them fails."""

from __future__ import annotations

import time
from subprocess import TimeoutExpired
from typing import Any

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher

GRACE_S = 10.0
"""Seconds that the others have to end by themselves, as they do where the error is one of all."""


class EndOtherRanks(Callback):
    """Ends the ranks that this process has started, when it fails: they would wait for it until a collective times out.

    Lightning itself ends all ranks when one of those that it has started fails; ``torchrun`` and SLURM
    (``srun --kill-on-bad-exit``) end those that they have started.

    Example:
        >>> from swirl_lightning.callbacks import EndOtherRanks
        >>> callback = EndOtherRanks()
    """

    def on_exception(self, trainer: Trainer, pl_module: Any, exception: BaseException) -> None:
        """Wait for the others, then kill them."""
        launcher = trainer.strategy.launcher
        if not isinstance(launcher, _SubprocessScriptLauncher):
            return
        processes = list(launcher.procs)
        launcher.procs.clear()  # Lightning kills this process, too, when it sees that one of them has failed
        until = time.monotonic() + GRACE_S
        for process in processes:
            try:
                process.wait(max(0.0, until - time.monotonic()))
            except TimeoutExpired:
                process.kill()
