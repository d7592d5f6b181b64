"""Mind2Web's metrics of actions: element accuracy, operation F1 and step success.

An action is a text as in Mind2Web's ``action_reprs``: ``[button]  Search -> CLICK``, ``[textbox]  City ->
TYPE: Oslo``. Mind2Web's own models choose an element among candidates; here the model writes it, and it is
right if its words are those of the recorded element.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

from swirl_lightning.metrics.row_mean import RowMean


class WebAction(NamedTuple):
    """Parts of an action.

    Attributes:
        element: the element that is acted on, white space normalised.
        operation: CLICK, TYPE or SELECT, and its value.
    """

    element: str
    operation: str


def parse_action(text: str) -> WebAction:
    """Parse ``element -> OPERATION: value``; a text without an arrow is an element alone.

    >>> parse_action("[textbox]  City -> TYPE: New  York")
    WebAction(element='[textbox] City', operation='TYPE New York')
    """
    element, _, operation = text.rpartition(" -> ") if " -> " in text else (text, "", "")
    name, _, value = operation.partition(":")
    return WebAction(" ".join(element.split()), " ".join([name.strip(), *value.split()]).strip())


def operation_f1(predicted: str, wanted: str) -> float:
    """Compute F1 of the sets of words of two operations with their values (as in Mind2Web's evaluation)."""
    guess, truth = set(predicted.split()), set(wanted.split())
    if not guess and not truth:
        return 1.0
    common = len(guess & truth)
    return 2 * common / (len(guess) + len(truth)) if common else 0.0


class _WebActionMetric(RowMean):
    """Score of an action's parts; by default the mean over tasks of each task's mean."""

    def __init__(self, name: str, *, macro: bool = True, **kwargs: Any) -> None:
        super().__init__(name, field="action", macro=macro, **kwargs)

    def score(self, predicted: Sequence[str], wanted: Sequence[str]) -> list[float]:
        """Compute the score of each pair, in [0, 1]."""
        return [
            self.compare(parse_action(guess), parse_action(truth))
            for guess, truth in zip(predicted, wanted, strict=True)
        ]

    @abstractmethod
    def compare(self, predicted: WebAction, wanted: WebAction) -> float:
        """Compute the score of one action."""


class ElementAccuracy(_WebActionMetric):
    """Share of actions on the right element."""

    def __init__(self, name: str = "element_accuracy", **kwargs: Any) -> None:
        super().__init__(name, **kwargs)

    def compare(self, predicted: WebAction, wanted: WebAction) -> float:
        """Return 1 if it is right, otherwise 0."""
        return float(predicted.element == wanted.element)


class OperationF1(_WebActionMetric):
    """Token F1 of operation and value."""

    def __init__(self, name: str = "operation_f1", **kwargs: Any) -> None:
        super().__init__(name, **kwargs)

    def compare(self, predicted: WebAction, wanted: WebAction) -> float:
        """Return F1 in [0, 1]."""
        return operation_f1(predicted.operation, wanted.operation)


class StepSuccess(_WebActionMetric):
    """Share of actions on the right element with an operation F1 of 1."""

    def __init__(self, name: str = "step_success", **kwargs: Any) -> None:
        super().__init__(name, **kwargs)

    def compare(self, predicted: WebAction, wanted: WebAction) -> float:
        """Return 1 if it is right, otherwise 0."""
        same = predicted.element == wanted.element
        return float(same and operation_f1(predicted.operation, wanted.operation) == 1)
