"""Roles of the two models, and names of adapters."""

from __future__ import annotations

from enum import StrEnum
from typing import NewType


class Role(StrEnum):
    """Role of a model; its value is its name in configurations, logs and checkpoints."""

    FWM = "fwm"
    """Forward world model P(y | x, z), which generates next states."""
    IDM = "idm"
    """Inverse dynamics model Q(z | x, y), which generates actions."""


ROLES = tuple(Role)

AdapterName = NewType("AdapterName", str)
"""Name of a LoRA adapter on the base; :class:`swirl_lightning.adapters.Adapters` gives the adapter of a role."""
