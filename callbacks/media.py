"""Images and texts for every logger of a run that can show them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from PIL import Image

FOLDER = "media"
"""Folder of a `CSVLogger`'s images and texts, and of MLflow's artifacts."""


class Media:
    """The loggers of a run that take images and texts: TensorBoard, Weights & Biases, MLflow, and a plain folder.

    A `CSVLogger` gets files: ``media/<tag>/<step>.png`` or ``.md`` beside its ``metrics.csv``.

    Args:
        loggers: of the Trainer; others are left out.
    """

    def __init__(self, loggers: list[Logger]) -> None:
        kinds = (TensorBoardLogger, WandbLogger, MLFlowLogger, CSVLogger)
        self._loggers: list[Any] = [logger for logger in loggers if isinstance(logger, kinds)]

    def __bool__(self) -> bool:
        return bool(self._loggers)

    def image(self, tag: str, image: Image.Image, step: int) -> None:
        """Show an image under a tag, at an optimiser step."""
        for logger in self._loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_image(tag, np.asarray(image), step, dataformats="HWC")
            elif isinstance(logger, WandbLogger):
                logger.log_image(tag, [image], step)
            elif isinstance(logger, MLFlowLogger):
                logger.experiment.log_image(logger.run_id, image, f"{FOLDER}/{tag}/{step:06}.png")
            else:
                image.save(_file(logger, tag, step, "png"))

    def text(self, tag: str, markdown: str, step: int) -> None:
        """Show Markdown under a tag, at an optimiser step."""
        for logger in self._loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_text(tag, markdown, step)
            elif isinstance(logger, WandbLogger):
                logger.log_text(tag, columns=["text"], data=[[markdown]], step=step)
            elif isinstance(logger, MLFlowLogger):
                logger.experiment.log_text(logger.run_id, markdown, f"{FOLDER}/{tag}/{step:06}.md")
            else:
                _file(logger, tag, step, "md").write_text(markdown + "\n", encoding="utf-8")


def media(trainer: Trainer) -> Media:
    """Return the loggers of a run that take images and texts; false where there are none, and on other ranks than 0."""
    return Media(list(trainer.loggers) if trainer.is_global_zero else [])


def _file(logger: CSVLogger, tag: str, step: int, ending: str) -> Path:
    path = Path(logger.log_dir) / FOLDER / tag / f"{step:06}.{ending}"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
