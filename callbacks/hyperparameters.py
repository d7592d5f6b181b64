"""The run's configuration on the text page of its loggers, and with the final metrics in TensorBoard's HParams view."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor

from swirl_lightning.callbacks.media import media
from swirl_lightning.callbacks.run_folder import run_folder
from swirl_lightning.files.safe_yaml import load

_SHOWN = ("model", "data", "phase_switch")


class HyperparameterText(Callback):
    """Writes the configuration to the run's loggers when training starts, and with its last metrics when it ends.

    It is the ``config.yaml`` that `LightningCLI` saved in the run's folder or, in a script, what the module
    keeps with ``save_hyperparameters``. TensorBoard's HParams view gets the numbers and words of ``model``, ``data``
    and ``phase_switch``, and the scores of the last validation. Loggers: see
    :class:`swirl_lightning.callbacks.media.Media`.

    Example::

        >>> from swirl_lightning.callbacks import HyperparameterText
        >>> callback = HyperparameterText()
    """

    def __init__(self) -> None:
        self._written = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin a training."""
        self._written = False

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Write the configuration once, when that of a training that goes on has been saved."""
        if self._written:
            return
        self._written = True
        text = self._text(run_folder(trainer), pl_module)
        if text:
            media(trainer).text("hyperparameters", f"```yaml\n{text.rstrip()}\n```", trainer.global_step)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the row of the HParams view."""
        folder = run_folder(trainer)
        metrics = {
            f"hparams/{key}": float(value)
            for key, value in trainer.callback_metrics.items()
            if key.startswith("val/") and isinstance(value, Tensor)
        }
        if not trainer.is_global_zero or not metrics:
            return
        found = load(self._text(folder, pl_module)) or {}
        params = dict(_leaves({key: value for key, value in found.items() if key in _SHOWN} or found))
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.log_hyperparams(params, metrics, step=trainer.global_step)

    def _text(self, folder: Path, pl_module: LightningModule) -> str:
        """The configuration as YAML; nothing where there is none."""
        if (path := folder / "config.yaml").is_file():
            return path.read_text(encoding="utf-8")
        plain = {name: value if _is_plain(value) else repr(value) for name, value in pl_module.hparams.items()}
        return yaml.safe_dump(plain, sort_keys=False) if plain else ""


def _leaves(found: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Numbers and words of a configuration by their names with dots, without ``init_args``."""
    for key, value in found.items():
        name = prefix if key == "init_args" else f"{prefix}.{key}" if prefix else str(key)
        if isinstance(value, dict):
            yield from _leaves(value, name)
        elif value is not None and _is_plain(value):
            yield name, value


def _is_plain(value: object) -> bool:
    return value is None or isinstance(value, str | int | float | bool)
