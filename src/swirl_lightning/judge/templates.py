"""Questions to the judge in each suite, and the scales of their answers."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass


@dataclass(frozen=True)
class JudgeTemplate:
    """Question to the judge.

    Attributes:
        text: with ``{action}`` in braces, and ``{predicted}`` for a predicted action; doubled braces stand
            for themselves.
        states: the states that are shown, in this order: ``before``, ``after``, ``predicted``.
        low: the worst score.
        high: the best score.
    """

    text: str
    states: tuple[str, ...]
    low: float
    high: float

    def parse(self, answer: str) -> tuple[float | None, str | None]:
        """Read the score: (score, None), or (None, ``unparsable``) without a number in the scale.

        The score is read from a JSON object with the key ``score`` anywhere in the answer. It is never clamped:
        a number outside the scale means that the question was not understood.
        """
        for match in re.finditer(r"\{[^{}]*\}", answer):
            try:
                fields = json.loads(match.group())
            except (ValueError, RecursionError):
                continue
            value = {str(k).lower(): v for k, v in fields.items()}.get("score")
            if isinstance(value, str):
                try:
                    value = float(value)
                except ValueError:
                    continue
            if isinstance(value, (int, float)) and not isinstance(value, bool) and self.low <= value <= self.high:
                return float(value), None
        return None, "unparsable"


_EDIT = """You grade the prediction of a world model. Picture 1 is the state before an action. Picture 2 is \
the model's prediction of the state after it.{reference}

Action: {{action}}

First work out what the action must change in picture 1, and what it must leave as it is. Then compare:
- Is the change there, complete and in the right place?
- Is everything else kept: other objects, background, viewpoint, style?
- A prediction that is nearly a copy of picture 1 gets a low score, if the action implies a visible change.
- Artefacts and distortions lower the score.

{low} is a prediction that has nothing to do with the action, {high} one that is exactly right.
Answer with JSON only: {{{{"score": <number from {low} to {high}>}}}}"""

_REFERENCE = " Picture 3 is what really happened; other ways to carry out the action are right, too."


def _edit(high: int, with_reference: bool) -> JudgeTemplate:
    text = _EDIT.format(reference=_REFERENCE if with_reference else "", low=0, high=high)
    states = ("before", "predicted", "after") if with_reference else ("before", "predicted")
    return JudgeTemplate(text, states, 0, high)


_ACTION = """You grade an inverse dynamics model, which names the action between two states. Picture 1 is \
the state before, picture 2 the state after it.

Reference action: {action}
Predicted action: {predicted}

Does the predicted action describe what happened between the pictures? Other words for the same are as good; \
a wrong object, place or direction is not. 0 is an action that has nothing to do with it, 10 one that is \
exactly right.
Answer with JSON only: {{"score": <number from 0 to 10>}}"""

TEMPLATES = {
    "action": JudgeTemplate(_ACTION, ("before", "after"), 0, 10),
    "aurora": _edit(10, False),
    "bytemorph": _edit(100, True),
    "worldprediction": _edit(10, False),
}
"""Templates by name: ``action`` is for inverse dynamics, the others are for suites.

AURORA and WorldPrediction are judged without the reference, 0 to 10; ByteMorph with it, 0 to 100.
"""
