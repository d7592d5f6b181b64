"""Interface of a true world that starts from a state."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from swirl_lightning.transition import State


class Simulator(Protocol):
    """True world of a benchmark, which :meth:`TransitionDataModule.simulator` gives."""

    name: str

    def states(self, state: State, actions: Sequence[str]) -> list[State | None]:
        """Return the true state after each action; None from where it cannot be told.

        Raises:
            ValueError: it cannot start from this state, or an action is none of its actions.
        """

    def same(self, one: State, other: State) -> bool:
        """Tell whether two states are equal for this world."""
