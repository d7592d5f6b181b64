"""Where Lightning's loops and callbacks go on from: what its own state lacks, or has too much of."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from lightning.pytorch.callbacks import ModelCheckpoint

from swirl_lightning.checkpoints.state import as_written


def epochs_done(checkpoint: dict[str, Any]) -> int:
    """Return the number of epochs that a fit resumed from a checkpoint does not train again.

    Raises:
        ValueError: the checkpoint does not say.
    """
    with as_written("the number of epochs"):
        return int(checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"])


def stop_after_last_batch(checkpoint: dict[str, Any]) -> bool:
    """Make a run resumed from an epoch's last batch end that epoch: validation, its hooks, then the next epoch.

    Returns:
        Whether the checkpoint is of an epoch's last batch.

    Lightning 2.6 goes from such a checkpoint (``every_n_train_steps``, ``train_time_interval``) straight to the next
    epoch's batches: neither ``on_train_epoch_end`` nor the next ``on_train_epoch_start`` is called, validation is
    left out, and the batch counter starts at the length of the last epoch. The state that is set here is the one of
    a run that was stopped after that batch and before the first of the validation.
    """
    loops = checkpoint["loops"]["fit_loop"]
    batches = loops["epoch_loop.batch_progress"]
    if not (batches["is_last_batch"] and _written_in_hook(batches)):
        return False
    for counts in (batches["total"], batches["current"]):
        counts["completed"] += 1
    _begin_validation(loops)
    return True


def validate_anew(checkpoint: dict[str, Any]) -> None:
    """Make a run resumed from within a validation begin that validation anew.

    Lightning 2.6 leaves out the validation if the checkpoint was written in ``on_validation_batch_end``, and from its
    middle it would go on with metrics that lack the first batches.
    """
    loops = checkpoint["loops"]["fit_loop"]
    if _written_in_hook(loops["epoch_loop.val_loop.batch_progress"]):
        _begin_validation(loops)


def _written_in_hook(batches: dict[str, Any]) -> bool:
    """Tell whether a checkpoint was written when a batch was processed, but not yet completed."""
    return bool(batches["current"]["completed"] == batches["current"]["processed"] - 1)


def _begin_validation(loops: dict[str, Any]) -> None:
    validation = loops["epoch_loop.val_loop.batch_progress"]
    validation["current"] = dict.fromkeys(validation["current"], 0)
    validation["total"] = {"ready": 1, "started": 1, "processed": 0, "completed": 0}


def stay_in_unfinished_epoch(checkpoint: dict[str, Any]) -> None:
    """Make a run resumed from an epoch that ``max_steps`` or ``max_time`` cut short go on with the rest of it.

    Lightning 2.6 ends such an epoch as if it were whole: ``on_train_epoch_end`` is called, and a checkpoint written
    there or after the fit goes on with the next epoch. The state that is set here is the one of a run that was
    stopped between two batches.
    """
    loops = checkpoint["loops"]["fit_loop"]
    epochs, batches = loops["epoch_progress"], loops["epoch_loop.batch_progress"]
    ready = epochs["current"]["ready"]
    if batches["is_last_batch"] or epochs["current"]["processed"] != ready:
        return
    for counts in (epochs["total"], epochs["current"]):
        counts["processed"] = counts["completed"] = counts["ready"] - 1
    for loader in loops["state_dict"].get("combined_loader", ()):
        loader |= {"epoch": ready - 1, "given": batches["current"]["ready"]}
        loader.pop("brought", None)  # it says what the next epoch has brought; without it, the rest of a window is


def forget_foreign_files(states: dict[str, Any], callbacks: Sequence[Any]) -> None:
    """Drop the state of every ModelCheckpoint that names a file outside the folder it writes to.

    ModelCheckpoint deletes what its state calls an older checkpoint, folders and remote paths included. With the
    state, the names of the best files of another folder are lost.
    """
    for callback in callbacks:
        state = states.get(callback.state_key)
        if not isinstance(callback, ModelCheckpoint) or not state:
            continue
        single = [state.get(key) for key in ("best_model_path", "kth_best_model_path", "last_model_path")]
        named = [path for path in [*single, *state.get("best_k_models", ())] if path]
        folder = os.path.join(os.path.normpath(str(callback.dirpath)), "")
        if not all(os.path.normpath(path).startswith(folder) for path in named):
            del states[callback.state_key]
