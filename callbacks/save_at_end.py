"""The last checkpoint of a training whose last epoch Lightning does not save."""

from __future__ import annotations

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from swirl_lightning.callbacks.run_folder import place_of_last


class SaveAtEnd(Callback):
    """Writes ``last.ckpt`` when a training ends, if no ModelCheckpoint has saved the end of its last epoch.

    With ``check_val_every_n_epoch`` above 1, ModelCheckpoint saves after validations alone. One with ``save_last`` says
    where.

    Example:
        >>> from swirl_lightning.callbacks import SaveAtEnd
        >>> callback = SaveAtEnd()
    """

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the state that the training ends with."""
        keepers = [keeper for keeper in trainer.checkpoint_callbacks if isinstance(keeper, ModelCheckpoint)]
        at_epochs = [keeper for keeper in keepers if keeper.every_n_epochs]
        saved = any(keeper._last_global_step_saved == trainer.global_step for keeper in at_epochs)
        path = place_of_last(trainer)
        if trainer.global_step and not saved and path is not None and any(keeper.save_last for keeper in keepers):
            trainer.save_checkpoint(path, weights_only=False)  # the optimiser, too; nothing is loaded
