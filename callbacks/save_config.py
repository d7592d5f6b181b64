"""``config.yaml`` of a run, and those of the steps that it trained with other settings."""

from __future__ import annotations

from itertools import chain, count
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from yaml import YAMLError

from swirl_lightning.callbacks.run_folder import run_folder
from swirl_lightning.files.safe_yaml import load
from swirl_lightning.files.writing import whole_file


class SaveConfig(SaveConfigCallback):
    """Writes ``config.yaml`` for fit and ``config_<command>.yaml`` for the others, over an older one.

    A fit's is written when training starts, and of one that goes on with its first batch: a finished run that is
    resumed trains nothing, whatever is set then, be it that the last epoch is validated and exported. Where a run goes
    on with other settings, the file of the steps before is kept as ``config_until_step_<n>.yaml``.
    """

    _written = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write the configuration to a file named by the command; not yet in a fit."""
        if stage != "fit":
            self._save(trainer, run_folder(trainer) / f"config_{TrainerFn(stage).value}.yaml")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write what a training that begins is done with."""
        self._written = not trainer.global_step
        if self._written:
            self._write(trainer)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Write what a training that goes on is done with."""
        if not self._written:
            self._written = True
            self._write(trainer)

    def _write(self, trainer: Trainer) -> None:
        path, step = run_folder(trainer) / self.config_filename, trainer.global_step
        if trainer.is_global_zero and step and path.is_file():
            before = path.read_bytes()
            if _settings(before) != _settings(self._content()):
                kept = _free(path.with_name(f"{path.stem}_until_step_{step}{path.suffix}"))
                with whole_file(kept) as file:
                    file.write(before)
                rank_zero_warn(f"the training goes on with other settings than before: those are kept as {kept}")
        self._save(trainer, path)

    def _save(self, trainer: Trainer, path: Path) -> None:
        if trainer.is_global_zero:
            with whole_file(path, alone=False) as file:
                file.write(self._content())

    def _content(self) -> bytes:
        return self.parser.dump(self.config, skip_none=False, skip_validation=True).encode()  # it was, when parsed


def _free(path: Path) -> Path:
    """Return the path, or the first of ``NAME_2``, ``NAME_3``, ... that is not there."""
    others = (path.with_stem(f"{path.stem}_{n}") for n in count(2))
    return next(place for place in chain([path], others) if not place.exists())


def _settings(content: bytes) -> Any:
    """Return what a configuration sets, wherever its run lies and goes on from; None where it is cut or broken."""
    try:
        found = load(content.decode())
    except (YAMLError, UnicodeDecodeError):
        return None
    if not isinstance(found, dict) or not isinstance(trainer := found.get("trainer"), dict):
        return None
    return {**found, "ckpt_path": None, "trainer": {**trainer, "default_root_dir": None}}
