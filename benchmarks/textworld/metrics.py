"""Metrics of predicted states, fact by fact: effects, preserved facts, hallucinated facts, and the whole state.

A transition's facts are those of its ``before``, ``after`` and predicted text (`read`). Each metric is the mean over
transitions of a share of facts, so that a step into another room, which changes all of them, counts as one step.
A text that does not name the room of the player is no state: none of its facts count as right.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

from swirl_lightning.benchmarks.textworld.facts import Facts, read
from swirl_lightning.metrics.category_means import CategoryMeans
from swirl_lightning.transition import State, Transition


class FactMetric(CategoryMeans, ABC):
    """Mean of a share of facts of each transition; subclasses define the share.

    Args:
        kinds: values of ``meta["kind"]`` that get a result of their own, ``<name>/<kind>``, where they occur.
        kwargs: as for `torchmetrics.Metric`.

    Attributes:
        name: key of the result.
    """

    name: ClassVar[str]

    def __init__(self, kinds: Sequence[str] = (), **kwargs: Any) -> None:
        super().__init__([self.name], kinds, by="kind", **kwargs)

    @abstractmethod
    def share(self, before: Facts, after: Facts, predicted: Facts, unread: int) -> float | None:
        """Compute the share of one transition, in [0, 1]; None where there is nothing to count.

        Args:
            before: facts of x.
            after: facts of y.
            predicted: facts of ŷ, none where it is no state.
            unread: number of sentences of ŷ that state no fact.
        """

    def update(self, predicted: Sequence[State | None], transitions: Sequence[Transition]) -> None:
        """Add one predicted state per transition."""
        self.add([[self._of(*pair)] for pair in zip(predicted, transitions, strict=True)], transitions)

    def _of(self, predicted: State | None, row: Transition) -> float | None:
        facts, unread = read(predicted) if isinstance(predicted, str) else ({}, 0)
        if "you" not in facts:
            facts, unread = {}, unread + len(facts)
        return self.share(read(str(row.before))[0], read(str(row.after))[0], facts, unread)


class EffectAccuracy(FactMetric):
    """Share of the things that changed, appeared or vanished whose prediction is right."""

    name = "effect_accuracy"

    def share(self, before: Facts, after: Facts, predicted: Facts, unread: int) -> float | None:
        """Compute the share; a thing that vanished is right if the prediction does not mention it."""
        changed = [name for name in before | after if before.get(name) != after.get(name)]
        right = sum(predicted.get(name) == after.get(name) for name in changed) if predicted else 0
        return right / len(changed) if changed else None


class Preservation(FactMetric):
    """Share of the unchanged things that are predicted unchanged."""

    name = "preservation"

    def share(self, before: Facts, after: Facts, predicted: Facts, unread: int) -> float | None:
        """Compute the share; None if nothing stayed unchanged."""
        kept = [name for name, value in before.items() if after.get(name) == value]
        return sum(predicted.get(name) == after[name] for name in kept) / len(kept) if kept else None


class Hallucination(FactMetric):
    """Share of the predicted facts that hold neither before nor after; sentences that state no fact count, too."""

    higher_is_better = False
    name = "hallucination"

    def share(self, before: Facts, after: Facts, predicted: Facts, unread: int) -> float | None:
        """Compute the share; None for an empty prediction."""
        made_up = unread + sum(value not in (before.get(name), after.get(name)) for name, value in predicted.items())
        told = unread + len(predicted)
        return made_up / told if told else None


class ExactStateMatch(FactMetric):
    """Share of the predictions that state all facts of the next state and nothing else, in any order."""

    name = "exact_match"

    def share(self, before: Facts, after: Facts, predicted: Facts, unread: int) -> float | None:
        """Return 1 if all facts are right, otherwise 0."""
        return float(predicted == after and not unread)
