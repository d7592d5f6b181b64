"""The record that all parts of the framework share: a transition (x, z, y)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from PIL import Image

State = str | Image.Image
"""State of the world: a text or an RGB image."""


@dataclass(frozen=True, eq=False)
class Choices:
    """Multiple-choice question: which of these actions leads from a transition's x to ``after``?

    Attributes:
        actions: the candidates in words, at least two.
        answer: index of the right one.
        after: y, the state that the right one leads to.

    Raises:
        ValueError: there are fewer than two candidates, one is blank, or ``answer`` is none of them.
    """

    actions: tuple[str, ...]
    answer: int
    after: State

    def __post_init__(self) -> None:
        if len(self.actions) < 2 or not all(action.strip() for action in self.actions):
            raise ValueError(f"choices need at least two actions and none that is blank, got {self.actions!r}")
        if not 0 <= self.answer < len(self.actions):
            raise ValueError(f"answer must be 0 to {len(self.actions) - 1}, the index of an action, got {self.answer}")


@dataclass(frozen=True, eq=False)
class Transition:
    """Step of the world, x -> y, with its action z where a label exists.

    Attributes:
        before: x, the state before.
        after: y, the state after, or None where it is not known. Such a record is not trained on. The FWM predicts
            its y from its action, and metrics that need y leave it out.
        action: z in words, or None for a state-only pair.
        id: names the record in messages, in files of predictions and in the seed of its rollouts;
            unique within its split.
        meta: other values that the benchmark needs to score the record (task, split, ...).
        turns: the later steps of a rollout that starts with this one. In evaluation the FWM starts each from the
            state that it predicted for the step before, in place of the turn's ``before``.
        choices: a multiple-choice question about x for both models, or None.
        counterfactual: an action that was not taken. Phase I rolls it out in place of the IDM's; None for the IDM's.
    """

    before: State
    after: State | None
    action: str | None = None
    id: str = ""
    meta: dict[str, Any] = field(default_factory=dict)
    turns: tuple[Transition, ...] = ()
    choices: Choices | None = None
    counterfactual: str | None = None

    def without_action(self) -> Transition:
        """Return the pair alone, as Phase I and Phase II may use it: no action, no later turns, no choices."""
        return Transition(self.before, self.after, None, self.id, self.meta)

    @property
    def observed(self) -> State:
        """State after, y, which must be known.

        Raises:
            ValueError: it is not known.
        """
        if self.after is None:
            raise ValueError(f"transition {self.id!r} has no state after, and training and its metrics need one")
        return self.after

    @property
    def label(self) -> str:
        """Action z, which must be known.

        Raises:
            ValueError: it is not known.
        """
        if not (self.action and self.action.strip()):
            raise ValueError(f"transition {self.id!r} of the labelled split (warmup) has no action: give it one")
        return self.action
