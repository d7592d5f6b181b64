"""A checkpoint when the process is asked to end, as schedulers of clusters do before they kill it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.rank_zero import rank_zero_info


class SaveOnTermination(Callback):
    """Writes ``last.ckpt`` at the first batch that ends after SIGTERM; Lightning then ends the training.

    On several devices the signal may not have reached all: there, and in validation, the last checkpoint stands.

    Example:
        >>> from swirl_lightning.callbacks import SaveOnTermination
        >>> callback = SaveOnTermination()
    """

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Save if the signal has come."""
        keeper = next((c for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint)), None)
        if not trainer.received_sigterm or trainer.world_size > 1 or keeper is None or keeper.dirpath is None:
            return
        path = Path(keeper.dirpath, keeper.CHECKPOINT_NAME_LAST + keeper.FILE_EXTENSION)
        trainer.save_checkpoint(path)
        rank_zero_info(f"SIGTERM: saved {path}; go on with --ckpt_path last")
