"""Checkpoints as files: written whole or not at all, and checked before any model is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from packaging.version import InvalidVersion, Version

from swirl_lightning.checkpoints.state import check_parts, chosen_lengths, own_state
from swirl_lightning.files.safe_torch import damaged, load_torch
from swirl_lightning.files.writing import whole_file

_OF_ANY = {"state_dict": dict, "loops": dict, "pytorch-lightning_version": str}
_OF_OURS = {"tokens_seen": int, "rng": list, "updates": list}
_OF_A_TRAINING = {"optimizer_states": list, "lr_schedulers": list, "callbacks": dict}


class WholeCheckpoints(TorchCheckpointIO):
    """Lightning's plugin for files, with checkpoints that replace an older one when they are on the disk.

    Lightning's own writes to ``TMPDIR``; where that is another file system, a run that is killed while the file is
    moved loses the old checkpoint and has half of the new one.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from swirl_lightning.checkpoints.file import WholeCheckpoints
        >>> trainer = Trainer(plugins=[WholeCheckpoints()], logger=False)
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write a file whole or not at all; a path with a scheme, as ``s3://``, is left to Lightning.

        Raises:
            OSError: the file cannot be written; it names the path.
        """
        if "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        try:
            with whole_file(path) as file:
                torch.save(checkpoint, file)
        except (OSError, RuntimeError) as error:  # torch's own, of a file that lacks an end, hides the system's
            cause = error if isinstance(error, OSError) else error.__context__
            if not isinstance(cause, OSError):
                raise
            why = cause.strerror or cause
            raise OSError(f"checkpoint {path} cannot be written ({why}); an earlier one stays") from error


def check_file(path: str | Path, resume: bool = False) -> dict[str, Any]:
    """Raise if a checkpoint is missing or unreadable, before any model is loaded; return it, tensors without data.

    Args:
        path: the file.
        resume: a training is to go on from it, which needs more than weights.

    Raises:
        FileNotFoundError: no such file; the message lists the checkpoints beside it.
        ValueError: the file is corrupt, not one of ours, or lacks something.
    """
    path = Path(path)
    if path.is_dir():
        there = sorted(str(p.relative_to(path)) for p in [*path.glob("*.ckpt"), *path.glob("checkpoints/*.ckpt")])
        raise FileNotFoundError(f"checkpoint {path} is a folder; name a file, of those in it: {there}")
    others = sorted(p.name for p in path.parent.glob("*.ckpt") if p != path) if path.parent.is_dir() else []
    beside = (
        f"in its folder there are: {others}" if others else "its folder has no other: train first (swirl fit -c ...)"
    )
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint {path} does not exist; {beside}")
    try:
        spoilt = damaged(path)
        checkpoint = {} if spoilt else load_torch(path, "meta")
    except Exception as error:
        reason = next(iter(str(error).splitlines()), "")
        raise ValueError(
            f"checkpoint {path} cannot be read ({type(error).__name__}: {reason}); is it complete? {beside}"
        ) from None
    if spoilt is not None:
        raise ValueError(f"checkpoint {path} is damaged: the checksum of {spoilt!r} in it is wrong; {beside}")
    try:
        state = own_state(checkpoint)
        check_parts(state, _OF_OURS | ({"learned": dict} if "learned" in state else {}), "swirl.")
        check_parts(checkpoint, _OF_ANY)
        chosen_lengths(state)
        _check_version(checkpoint["pytorch-lightning_version"])
        check_parts(checkpoint["state_dict"], dict.fromkeys(checkpoint["state_dict"], torch.Tensor), "state_dict.")
        if resume and not _OF_A_TRAINING.keys() & checkpoint.keys():
            raise ValueError("it holds weights alone (save_weights_only): test it, or resume from a whole one")
        if resume:
            check_parts(checkpoint, _OF_A_TRAINING)
            check_parts(checkpoint["callbacks"], dict.fromkeys(checkpoint["callbacks"], dict), "callbacks.")
            _check_counts(checkpoint["loops"], "loops")
    except ValueError as error:
        raise ValueError(f"checkpoint {path}: {error}; {beside}") from None
    return checkpoint


def _check_version(version: str) -> None:
    """Raise ValueError if the version of Lightning is none, by which it brings older checkpoints up to date."""
    try:
        Version(version)
    except InvalidVersion:
        raise ValueError(f"pytorch-lightning_version {version[:40]!r} is no version") from None


def _check_counts(found: dict[str, Any], where: str) -> None:
    """Raise ValueError if what Lightning's loops have counted is no number of times."""
    for name, part in found.items():
        if name in ("is_last_batch", "_batches_that_stepped"):
            check_parts(found, {name: bool if name == "is_last_batch" else int}, f"{where}.")
        elif not isinstance(part, dict) or name == "state_dict":  # of a loader of one's own, say
            continue
        elif name not in ("total", "current"):
            _check_counts(part, f"{where}.{name}")
        elif not all(type(count) is int and count >= 0 for count in part.values()):
            raise ValueError(f"{where}.{name} holds what is no count: {str(part)[:100]}")
