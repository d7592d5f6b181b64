"""Checkpoints of shared weights as the start of two models."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from swirl_lightning.checkpoints.state import own_state
from swirl_lightning.roles import ROLES

_SHARED = "world"


def is_shared(checkpoint: dict[str, Any]) -> bool:
    """Tell whether one adapter was both models."""
    return any(key.startswith(f"{_SHARED}.") for key in checkpoint["state_dict"])


def separate(checkpoint: dict[str, Any]) -> None:
    """Give both models the shared adapter, its reference and its optimiser's moments, in place.

    Args:
        checkpoint: of shared weights.

    Raises:
        ValueError: it was written within a phase, whose reward is a copy that separate weights do not have.
    """
    if (label := own_state(checkpoint)["label"]).endswith("unfinished"):
        raise ValueError(
            f"a checkpoint of shared weights can start separate ones where no phase is unfinished, and this one is "
            f"{label!r}: take one of an epoch's end, or set model.shared_weights"
        )
    tensors = checkpoint["state_dict"]
    checkpoint["state_dict"] = {
        f"{role}{kind}.{key.removeprefix(f'{_SHARED}{kind}.')}": tensor.clone()
        for role in ROLES
        for kind in ("", "_ref")
        for key, tensor in tensors.items()
        if key.startswith(f"{_SHARED}{kind}.")
    }
    for state in checkpoint.get("optimizer_states", []):
        (group,) = state["param_groups"]
        count = len(group["params"])
        state["param_groups"] = [
            {**group, "params": [number + k * count for number in group["params"]]} for k in range(len(ROLES))
        ]
        state["state"] = {
            number + k * count: deepcopy(value) for k in range(len(ROLES)) for number, value in state["state"].items()
        }
