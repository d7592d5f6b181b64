"""The run's configuration on TensorBoard's text page."""

from __future__ import annotations

from pathlib import Path

import yaml
from lightning.pytorch import Callback, LightningModule, Trainer

from swirl_lightning.callbacks._shared import log_dir, tensorboard


class HyperparameterText(Callback):
    """Writes the configuration to TensorBoard when training starts.

    It is the ``config.yaml`` that `LightningCLI` saved in the run's folder or, in a script, what the module
    keeps with ``save_hyperparameters``. Without a `TensorBoardLogger` nothing happens.

    Args:
        filename: name of the file in the run's folder.

    Example::

        >>> from swirl_lightning.callbacks import HyperparameterText
        >>> callback = HyperparameterText()
    """

    def __init__(self, filename: str = "config.yaml") -> None:
        self.filename = filename

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the configuration once."""
        folder, writer = log_dir(trainer), tensorboard(trainer)
        if writer is None:
            return
        text = ""
        if folder is not None and (path := Path(folder) / self.filename).is_file():
            text = path.read_text(encoding="utf-8")
        elif pl_module.hparams:
            plain = {name: value if _is_plain(value) else repr(value) for name, value in pl_module.hparams.items()}
            text = yaml.safe_dump(plain, sort_keys=False)
        if text:
            writer.add_text("hyperparameters", f"```yaml\n{text.rstrip()}\n```", trainer.global_step)


def _is_plain(value: object) -> bool:
    return value is None or isinstance(value, str | int | float | bool)
