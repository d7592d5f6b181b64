"""Export of the adapters in plain PEFT format during training."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn

from swirl_lightning.callbacks.run_folder import EXPORTS, run_folder
from swirl_lightning.files.writing import whole_folder
from swirl_lightning.results.table import FILE, read, tested


class AdapterExport(Callback):
    """Saves both adapters at the end of warm-up, of each iteration and of the run.

    They are written to ``adapters/<label>/<adapter>/`` of the run's folder (labels ``sft``, ``swirl-iteration-1``, ...,
    ``last``), where ``PeftModel.from_pretrained`` finds them without this package, and `SWIRL.from_pretrained` both,
    beside a model card with the results so far. An earlier export of that label is replaced. Does nothing in a
    ``fast_dev_run``.

    Example::

        >>> from swirl_lightning.callbacks import AdapterExport
        >>> callback = AdapterExport()
    """

    def __init__(self) -> None:
        self._trained = False

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        """Begin with nothing trained."""
        self._trained = False

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
        """Take note that there is something new."""
        self._trained = True

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Save if warm-up or an iteration is complete; ``max_steps`` may have cut it short."""
        label = pl_module.phase.ends
        if label is not None and trainer.is_last_batch:
            self._export(trainer, pl_module, label)

    def on_fit_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Save what the run ends with; if a finished run is resumed, where it was killed before it had saved that."""
        if trainer.global_step:
            self._export(trainer, pl_module, "last")
        else:
            rank_zero_warn("not one step was trained, so no adapters are saved")

    def _export(self, trainer: Trainer, pl_module: Any, label: str) -> None:
        root = run_folder(trainer)
        if trainer.fast_dev_run or not trainer.is_global_zero:  # type: ignore[attr-defined]
            return
        folder = root / EXPORTS / re.sub(r"[^a-z0-9.]+", "-", label.lower()).strip("-")
        if not self._trained and _has(folder, pl_module):
            return  # what stands there tells the settings that the weights have seen
        with whole_folder(folder) as new:
            data: Any = trainer.datamodule  # type: ignore[attr-defined]
            pl_module.export(new, type(data).__name__, tested(read(root / FILE)))
        rank_zero_info(f"adapters saved in {folder}")


def _has(folder: Path, pl_module: Any) -> bool:
    """Tell whether an export holds these weights already."""
    try:
        there = pl_module.adapters.exported_state(folder, "cpu")
    except (OSError, ValueError):
        return False
    here = {
        key: tensor.cpu()
        for key, tensor in pl_module.adapters.state_dict().items()
        if key.partition(".")[0] in pl_module.adapters.trainable
    }
    return all(key in there and torch.equal(there[key], tensor) for key, tensor in here.items())
