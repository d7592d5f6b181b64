"""Which checkpoint of a run is its last one."""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import chain
from pathlib import Path

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from swirl_lightning.checkpoints.state import written_at
from swirl_lightning.torch_files import load_torch

_NAMES = f"[!.]*{ModelCheckpoint.FILE_EXTENSION}"
"""Without what other systems leave beside a file, such as ``._last.ckpt``."""


def places(trainer: Trainer) -> list[Path]:
    """Return the folders that a run's checkpoints go to."""
    keepers = (callback for callback in trainer.checkpoint_callbacks if isinstance(callback, ModelCheckpoint))
    # Lightning's own answer, of a private method: it depends on the first logger, and not on its log_dir
    return [Path(keeper._ModelCheckpoint__resolve_ckpt_dir(trainer)) for keeper in keepers]  # type: ignore[attr-defined]


def last_checkpoint(trainer: Trainer) -> Path | None:
    """Return the last checkpoint in the folders that a run's checkpoints go to; None if they have none."""
    return _last(_in(places(trainer)))


def last_of_earlier_versions(trainer: Trainer) -> Path | None:
    """Return the last checkpoint of the numbered folders beside a run's own; None if there is none.

    A logger that numbers them gives every start a folder of its own, and so no run would ever find its checkpoint.
    """
    numbered = [place for place in places(trainer) if re.fullmatch(r"version_[0-9]+", place.parent.name)]
    return _last(_in(chain.from_iterable(place.parent.parent.glob(f"version_*/{place.name}") for place in numbered)))


def find_checkpoint(run: Path) -> Path:
    """Return the last checkpoint in a run's folder and those within it, or the file itself.

    Raises:
        FileNotFoundError: there is none.
    """
    if run.is_file():
        return run
    if not run.is_dir():
        raise FileNotFoundError(f"no such run: {run}; give a run's folder (trainer.default_root_dir) or a checkpoint")
    if (found := _last(_in([run, *filter(Path.is_dir, run.rglob("*"))]))) is None:
        raise FileNotFoundError(f"no checkpoint in {run}: train first (swirl fit -c ...), or name a .ckpt file")
    return found


def _in(folders: Iterable[Path]) -> Iterable[Path]:
    return chain.from_iterable(folder.glob(_NAMES) for folder in folders)


def _last(paths: Iterable[Path]) -> Path | None:
    """Return the checkpoint that was written last; of one time, ``last.ckpt`` or that of the highest numbers."""
    files = list(filter(Path.is_file, paths))
    if len(files) < 2:
        return next(iter(files), None)  # unread
    numbers = {path: list(map(int, re.findall("[0-9]+", path.name))) for path in files}
    return max(files, key=lambda path: (_written(path), path.name == "last.ckpt", numbers[path]))


def _written(path: Path) -> tuple[bool, float]:
    """When a checkpoint was written, in seconds: what it says itself, as a copied file has the time of the copy.

    Those that say none are older than all that do; they have the file's own time. So has one that cannot be read: where
    that is the last one, its own check will tell.
    """
    try:
        written = written_at(load_torch(path, "meta")["swirl"])
    except Exception:
        return True, path.stat().st_mtime
    return written is not None, path.stat().st_mtime if written is None else written
