"""Which of the two models is meant, and the names of adapters."""

from __future__ import annotations

from enum import StrEnum
from typing import NewType


class Role(StrEnum):
    """One of the two models; its value is what configurations, logs and checkpoints call it."""

    FWM = "fwm"
    """Forward world model P(y | x, z): generates next states."""
    IDM = "idm"
    """Inverse dynamics model Q(z | x, y): generates actions."""


ROLES = tuple(Role)

AdapterName = NewType("AdapterName", str)
"""Name of a LoRA adapter on the base. Which adapter plays a role: :class:`swirl_lightning.adapters.Adapters`."""
