"""Export of the adapters in plain PEFT format during training."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from swirl_lightning.callbacks._shared import log_dir
from swirl_lightning.files import whole_folder
from swirl_lightning.results.table import FILE, read


class AdapterExport(Callback):
    """Saves both adapters at the end of warm-up, of each iteration and of the run.

    They are written to ``<log_dir>/<dirname>/<label>/<adapter>/`` (labels ``sft``, ``swirl-iteration-1``, ...,
    ``last``), where ``PeftModel.from_pretrained`` finds them without this package, and `SWIRL.from_pretrained` both,
    beside a model card with the results so far. An earlier export of that label is replaced. Does nothing in a
    ``fast_dev_run``.

    Args:
        dirname: folder under the run's folder.

    Example::

        >>> from swirl_lightning.callbacks import AdapterExport
        >>> callback = AdapterExport(dirname="adapters")
    """

    def __init__(self, dirname: str = "adapters") -> None:
        self.dirname = dirname

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Save if warm-up or an iteration is complete; ``max_steps`` may have cut it short."""
        label = pl_module.phase.ends
        if label is not None and trainer.is_last_batch:
            self._export(trainer, pl_module, label)

    def on_fit_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Save what the run ends with; again if a finished run is resumed, which may have been killed just before."""
        self._export(trainer, pl_module, "last")

    def _export(self, trainer: Trainer, pl_module: Any, label: str) -> None:
        root = log_dir(trainer)
        if root is None or trainer.fast_dev_run or not trainer.is_global_zero:  # type: ignore[attr-defined]
            return
        folder = Path(root) / self.dirname / re.sub(r"[^a-z0-9.]+", "-", label.lower()).strip("-")
        with whole_folder(folder) as new:
            pl_module.export(new, _data(trainer), _results(Path(root)))
        rank_zero_info(f"adapters saved in {folder}")


def _data(trainer: Trainer) -> str:
    """Name the data of a run."""
    data = trainer.datamodule  # type: ignore[attr-defined]
    return getattr(data, "suite", "") or type(data).__name__


def _results(root: Path) -> dict[str, Any]:
    """Return the rows of a run's table, of its test where it has been tested."""
    found = read(root / FILE)
    return found.get("test") or found.get("validation") or {}
