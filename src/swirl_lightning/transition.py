"""The one record that every part of the framework speaks about: a transition (x, z, y)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from PIL import Image

State = str | Image.Image
"""A state of the world: a text or an RGB picture."""


@dataclass(frozen=True, eq=False)
class Transition:
    """One step of the world, x -> y, with its action z where a label exists.

    Attributes:
        before: x, the state before.
        after: y, the state after, or None where it is not known: then there is no training on the record, the FWM
            predicts y from its action, and nothing that needs y is asked.
        action: z in words, or None for a state-only pair.
        id: names the record in messages, in files of predictions and in the seed of its rollouts;
            unique within its split.
        meta: whatever else the benchmark needs to score the record (task, split, ...). Two keys mean
            something to the evaluation: ``turns`` (later steps of a rollout) and ``choices``; see
            :class:`swirl_lightning.evaluation.Evaluator`.
    """

    before: State
    after: State | None
    action: str | None = None
    id: str = ""
    meta: dict[str, Any] = field(default_factory=dict)

    def without_action(self) -> Transition:
        """The same pair with its label taken away (what Phase I and Phase II may see)."""
        return Transition(self.before, self.after, None, self.id, self.meta)

    @property
    def observed(self) -> State:
        """y, for whoever cannot do without it.

        Raises:
            ValueError: it is not known.
        """
        if self.after is None:
            raise ValueError(f"transition {self.id!r} has no state after, and training and its metrics need one")
        return self.after
