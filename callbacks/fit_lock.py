"""A lock that keeps a second fit out of a run's folder."""

from __future__ import annotations

from filelock import FileLock, Timeout
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from swirl_lightning.callbacks.run_folder import run_folder
from swirl_lightning.files.locks import lock

NAME = "fit.lock"
"""Of the lock's file, in the folder of the run."""


class FitLock(Callback):
    """Holds ``fit.lock`` in the run's folder during a fit: a second one there would write over its checkpoints.

    The system frees it when the process ends, however it ends. On a file system without locks, a warning says so.

    Example:
        >>> from swirl_lightning.callbacks import FitLock
        >>> callback = FitLock()
    """

    def __init__(self) -> None:
        self._held: FileLock | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take the lock, on the first rank.

        Raises:
            ValueError: another fit is under way in the run's folder.
        """
        if stage != "fit":
            return
        folder = run_folder(trainer)  # collective
        if not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        try:
            self._held = lock(folder / NAME, timeout=0)
        except Timeout:
            raise ValueError(
                f"another fit is under way in {folder}: wait until it ends, or give another trainer.default_root_dir"
            ) from None
        if self._held is None:
            rank_zero_warn(
                f"{folder / NAME} cannot be locked on this file system: see that no second fit writes to this folder"
            )

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let another fit begin."""
        if self._held is not None:
            self._held.release()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Let another fit begin."""
        self.teardown(trainer, pl_module, "fit")
