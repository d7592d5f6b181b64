"""Which checkpoint of a run is its last one."""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import chain
from pathlib import Path

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from swirl_lightning.checkpoints.state import written_at
from swirl_lightning.files.safe_torch import load_torch

NAMES = f"[!.]*{ModelCheckpoint.FILE_EXTENSION}"
"""Without what other systems leave beside a file, such as ``._last.ckpt``."""


def places(trainer: Trainer) -> list[Path]:
    """Return the folders that a run's checkpoints go to.

    Raises:
        ValueError: one is on another machine, where none could be found and none kept from being written over.
    """
    return [place for place, _ in _kept(trainer)]


def checkpoints(trainer: Trainer) -> Iterable[Path]:
    """Return the checkpoints in the folders that a run's go to."""
    return filter(Path.is_file, chain.from_iterable(place.glob(names) for place, names in _kept(trainer)))


def last_checkpoint(trainer: Trainer, resume: bool) -> Path | None:
    """Return the last checkpoint in the folders that a run's checkpoints go to; None if they have none.

    Args:
        trainer: of the run.
        resume: a training is to go on from it: those that hold weights alone come after all others, but for a
            ``last.ckpt``, whose own check will tell.
    """
    return _last(checkpoints(trainer), resume)


def last_of_earlier_versions(trainer: Trainer, resume: bool) -> Path | None:
    """Return the last checkpoint of the numbered folders beside a run's own; None if there is none.

    A logger that numbers them gives every start a folder of its own, and so no run would ever find its checkpoint.
    Arguments as :func:`last_checkpoint`.
    """
    numbered = [kept for kept in _kept(trainer) if re.fullmatch(r"version_[0-9]+", kept[0].parent.name)]
    found = (place.parent.parent.glob(f"version_*/{place.name}/{names}") for place, names in numbered)
    return _last(chain.from_iterable(found), resume)


def find_checkpoint(run: Path) -> Path:
    """Return the last checkpoint in a run's folder and those within it, or the file itself.

    Raises:
        FileNotFoundError: there is none.
    """
    if run.is_file():
        return run
    if not run.is_dir():
        raise FileNotFoundError(f"no such run: {run}; give a run's folder (trainer.default_root_dir) or a checkpoint")
    folders = [run, *filter(Path.is_dir, run.rglob("*"))]  # a link to one, too
    if (found := _last(chain.from_iterable(folder.glob(NAMES) for folder in folders))) is None:
        raise FileNotFoundError(f"no checkpoint in {run}: train first (swirl fit -c ...), or name a .ckpt file")
    return found


def _kept(trainer: Trainer) -> list[tuple[Path, str]]:
    """Return each folder that a run's checkpoints go to, with the pattern of their names.

    The name of a metric in a file's name makes folders.
    """
    kept = []
    for keeper in trainer.checkpoint_callbacks:
        if isinstance(keeper, ModelCheckpoint):
            # Lightning's own answer, of a private method: it depends on the first logger, and not on its log_dir
            place = keeper._ModelCheckpoint__resolve_ckpt_dir(trainer)  # type: ignore[attr-defined]
            if "://" in str(place):
                raise ValueError(f"checkpoints would go to {place}: give a folder of this machine, and copy it later")
            kept.append((Path(place), f"**/{NAMES}" if "/" in str(keeper.filename) else NAMES))
    return kept


def _last(paths: Iterable[Path], resume: bool = False) -> Path | None:
    """Return the checkpoint that was written last; of one time, ``last.ckpt`` or that of the highest numbers."""
    files = list(filter(Path.is_file, paths))
    if len(files) < 2:
        return next(iter(files), None)  # unread
    numbers = {path: list(map(int, re.findall("[0-9]+", path.name))) for path in files}
    return max(files, key=lambda path: (*_age(path, resume), path.name == "last.ckpt", numbers[path]))


def _age(path: Path, resume: bool) -> tuple[bool, bool, float]:
    """Return what orders checkpoints by time: whether it can serve, and when it was written, by what it says itself.

    A copied file has the time of the copy. Those that say none are older than all that do, and have the file's own. So
    has one that cannot be read: where that is the last one, its own check will tell.
    """
    try:
        checkpoint = load_torch(path, "meta")
        serves = not resume or path.name == "last.ckpt" or "optimizer_states" in checkpoint
        written = written_at(checkpoint["swirl"])
    except Exception:
        return True, True, path.stat().st_mtime
    return serves, written is not None, path.stat().st_mtime if written is None else written
