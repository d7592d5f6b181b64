"""``config.yaml`` of a run, and those of the steps that it trained with other settings."""

from __future__ import annotations

import shutil
from itertools import chain, count
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from yaml import YAMLError

from swirl_lightning.yaml_files import load


class SaveConfig(SaveConfigCallback):
    """Writes ``config.yaml`` for fit and ``config_<command>.yaml`` for the others, over an older one.

    A fit's is written when training starts, and of one that goes on with its first batch: a finished run that is
    resumed trains nothing, whatever is set then, be it that the last epoch is validated and exported. Where a run goes
    on with other settings, the file of the steps before is kept as ``config_until_step_<n>.yaml``.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write the configuration to a file named by the command, as Lightning does; not yet in a fit."""
        if stage != "fit":
            self.config_filename = f"config_{TrainerFn(stage).value}.yaml"
            super().setup(trainer, pl_module, stage)

    _written = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write what a training that begins is done with."""
        self._written = not trainer.global_step
        if self._written:
            self._write(trainer, pl_module)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Write what a training that goes on is done with."""
        if not self._written:
            self._written = True
            self._write(trainer, pl_module)

    def _write(self, trainer: Trainer, pl_module: LightningModule) -> None:
        path = Path(trainer.log_dir or trainer.default_root_dir, self.config_filename)
        step = trainer.global_step
        kept = None
        if trainer.is_global_zero and step and path.is_file():
            names = (f"{path.stem}_until_step_{step}{n}{path.suffix}" for n in chain([""], map("_{}".format, count(2))))
            kept = next(place for name in names if not (place := path.with_name(name)).exists())
            shutil.copy(path, kept)
        super().setup(trainer, pl_module, "fit")
        if kept is None:
            return
        if _settings(kept) == _settings(path):
            kept.unlink()
        else:
            rank_zero_warn(f"the training goes on with other settings than before: those are kept as {kept}")


def _settings(path: Path) -> Any:
    """Return what a configuration sets, wherever its run lies and goes on from; None where it is cut or broken."""
    try:
        found = load(path.read_text(encoding="utf-8"))
    except (YAMLError, UnicodeDecodeError):
        return None
    if not isinstance(found, dict) or not isinstance(trainer := found.get("trainer"), dict):
        return None
    return {**found, "ckpt_path": None, "trainer": {**trainer, "default_root_dir": None}}
