"""Which checkpoint of a run is its last one."""

from __future__ import annotations

import re
from itertools import chain
from pathlib import Path

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from swirl_lightning.files import newest
from swirl_lightning.torch_files import load_torch


def places(trainer: Trainer) -> list[Path]:
    """Return the folders that a run's checkpoints go to."""
    folder = Path(trainer.log_dir or trainer.default_root_dir)
    return [Path(keeper.dirpath) if keeper.dirpath else folder / "checkpoints" for keeper in _keepers(trainer)]


def last_checkpoint(trainer: Trainer) -> Path | None:
    """Return the last checkpoint in the folders that a run's checkpoints go to; None if they have none."""
    found = newest(Path(path) for keeper in _keepers(trainer) for path in keeper._find_last_checkpoints(trainer))
    return later(found) if found else newest(chain.from_iterable(map(_checkpoints, places(trainer))))


def last_of_earlier_versions(trainer: Trainer) -> Path | None:
    """Return the last checkpoint of the numbered folders beside a run's own; None if there is none.

    A logger that numbers them gives every start a folder of its own, and so no run would ever find its checkpoint.
    """
    folder = Path(trainer.log_dir or trainer.default_root_dir)
    if re.fullmatch(r"version_[0-9]+", folder.name) is None:
        return None
    found = newest(chain.from_iterable(map(_checkpoints, folder.parent.glob("version_*/checkpoints"))))
    return found and find_checkpoint(found.parent)


def find_checkpoint(run: Path) -> Path:
    """Return the last checkpoint of a run: the file itself, or that of the newest ``last.ckpt``, else the newest one.

    Raises:
        FileNotFoundError: there is none.
    """
    if run.is_file():
        return run
    if not run.is_dir():
        raise FileNotFoundError(f"no such run: {run}; give a run's folder (trainer.default_root_dir) or a checkpoint")
    if found := newest(filter(Path.is_file, run.rglob("last.ckpt"))):
        return later(found)
    if found := newest(filter(Path.is_file, run.rglob("*.ckpt"))):
        return found
    raise FileNotFoundError(f"no checkpoint in {run}: train first (swirl fit -c ...), or name a .ckpt file")


def later(last: Path) -> Path:
    """Return the checkpoint that was written after ``last.ckpt``, in its folder and at a later step; else that file.

    The one that a signal has a run write stays as it is where the run itself writes none of that name. Times alone do
    not tell: those of a copied folder are the copy's.
    """
    newer = [path for path in _checkpoints(last.parent) if path.stat().st_mtime > last.stat().st_mtime]
    if not newer:
        return last
    steps = {path: _step(path) for path in (last, *newer)}
    found = max(newer, key=lambda path: (steps[path], path.stat().st_mtime))
    return found if 0 <= steps[last] < steps[found] else last


def _checkpoints(folder: Path) -> list[Path]:
    return [path for path in folder.glob(f"*{ModelCheckpoint.FILE_EXTENSION}") if path.is_file()]


def _keepers(trainer: Trainer) -> list[ModelCheckpoint]:
    return [callback for callback in trainer.checkpoint_callbacks if isinstance(callback, ModelCheckpoint)]


def _step(path: Path) -> int:
    """The optimiser steps that a checkpoint has behind it; -1 if it cannot be read, which its own check will tell."""
    try:
        step = load_torch(path, "meta")["global_step"]
    except Exception:
        return -1
    return step if type(step) is int else -1
