"""Where a run keeps its files."""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

EXPORTS = "adapters"
"""Name of the folder of exported adapters, in the run's folder."""


def run_folder(trainer: Trainer) -> Path:
    """Return the folder of a run: ``default_root_dir``, or that of a logger of files, which may number its versions.

    Collective: every rank must call it.
    """
    of_files = isinstance(trainer.logger, TensorBoardLogger | CSVLogger)
    return Path((trainer.log_dir if of_files else None) or trainer.default_root_dir)


def keep_checkpoints_in_the_run(trainer: Trainer) -> None:
    """Have checkpoints without a ``dirpath`` lie in the run's folder, beside its ``config.yaml``, whatever the logger.

    Lightning makes folders of the names of a logger's project and run, but for loggers of files: what is used of a
    checkpoint would not find its configuration. Collective.
    """
    place = str(run_folder(trainer) / "checkpoints")
    for keeper in trainer.checkpoint_callbacks:
        if isinstance(keeper, ModelCheckpoint) and keeper.dirpath is None:
            keeper.dirpath = place


def place_of_last(trainer: Trainer) -> Path | None:
    """Return where the first ModelCheckpoint keeps ``last.ckpt``; None without one, or before it has a folder.

    A ``fast_dev_run`` writes none, but may have the callback of a real run.
    """
    keeper = next((c for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint)), None)
    if keeper is None or keeper.dirpath is None or trainer.fast_dev_run:  # type: ignore[attr-defined]
        return None
    return Path(keeper.dirpath, keeper.CHECKPOINT_NAME_LAST + keeper.FILE_EXTENSION)
