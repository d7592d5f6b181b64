"""What classes of the user add to checkpoints: plain values alone, for nothing else is read from a file."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor

from swirl_lightning.checkpoints.state import as_written

_PARTS = ("learner", "reward")
_PLAIN = (bool, int, float, str, type(None))


def plain(value: Any, of: str) -> Any:
    """Copy a value of tensors, numbers, texts, lists, tuples and dictionaries, with tensors on the CPU.

    Args:
        value: of a user's class.
        of: names it in the error.

    Raises:
        ValueError: there is something else in it, with which a checkpoint could be written, but not read.
    """
    if isinstance(value, Tensor):
        return value.detach().cpu()
    if type(value) in _PLAIN:
        return value
    if type(value) in (list, tuple):
        return type(value)(plain(item, of) for item in value)
    if isinstance(value, dict):
        return {plain(key, of): plain(item, of) for key, item in value.items()}
    raise ValueError(
        f"{of} holds a {type(value).__module__}.{type(value).__qualname__}, and checkpoints are read without code: "
        "use tensors, numbers, texts, lists and dictionaries alone (float(x) of a NumPy number, x.value of an enum)"
    )


def leave_out_objects(checkpoint: dict[str, Any]) -> None:
    """Leave out of a checkpoint the hyperparameters that Lightning has put there and that could not be read again.

    ``save_hyperparameters()`` takes whole objects, such as the backbone. Nothing is built from them here.
    """
    for kind in (LightningModule, LightningDataModule):
        checkpoint.pop(kind.CHECKPOINT_HYPER_PARAMS_TYPE, None)
        kept = {}
        for name, value in checkpoint.pop(kind.CHECKPOINT_HYPER_PARAMS_KEY, {}).items():
            with suppress(ValueError):
                kept[name] = plain(value, name)
        if kept:
            checkpoint[kind.CHECKPOINT_HYPER_PARAMS_KEY] = kept


def states_of(module: Any) -> dict[str, Any]:
    """Return the ``state_dict`` of a module's learner and reward where they have one, with the name of its class.

    Raises:
        ValueError: one could not be read again.
    """
    found = {}
    for name in _PARTS:
        part = getattr(module, name)
        if hasattr(part, "state_dict") and (state := part.state_dict()):
            found[name] = {"class": _class_of(part), "state": plain(state, f"the state_dict of model.{name}")}
    return found


def restore_states(states: Mapping[str, Any], module: Any) -> None:
    """Give a module's learner and reward what :func:`states_of` has found; that of another class is left, and told.

    Raises:
        ValueError: one cannot be taken.
    """
    for name in _PARTS:
        part = getattr(module, name)
        with as_written(f"the state of model.{name}"):
            if (entry := states.get(name)) is None:
                continue
            if entry["class"] == _class_of(part) and hasattr(part, "load_state_dict"):
                part.load_state_dict(entry["state"])
            else:
                rank_zero_warn(f"model.{name} begins anew: the checkpoint's state is of {str(entry['class'])[:200]}")


def _class_of(part: Any) -> str:
    return f"{type(part).__module__}.{type(part).__qualname__}"
