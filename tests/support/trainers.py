"""The one Trainer that tests use."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint


def quiet_trainer(folder: Path, *callbacks: Callback, **settings: Any) -> Trainer:
    """A Trainer on CPUs that prints nothing, and keeps nothing without a ``ModelCheckpoint``."""
    quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary"), False)
    checkpoints = any(isinstance(callback, ModelCheckpoint) for callback in callbacks)
    options = {"accelerator": "cpu", "default_root_dir": folder, "enable_checkpointing": checkpoints, **quiet}
    return Trainer(callbacks=list(callbacks), **(options | settings))
