"""Sequences of transitions that a phase is given, made of those of splits."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any
from zlib import crc32

import numpy as np
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from numpy.typing import NDArray

from swirl_lightning.transition import Transition


class Chosen(Sequence[Transition]):
    """Sequence of chosen rows of a split."""

    def __init__(self, rows: Sequence[Transition], chosen: list[int]) -> None:
        self._rows = rows
        self._chosen = chosen

    def __len__(self) -> int:
        return len(self._chosen)

    def __getitem__(self, index: int) -> Transition:  # type: ignore[override]
        return self._rows[self._chosen[index]]


class StateOnly(Chosen):
    """Sequence of chosen rows of a split, without their actions."""

    def __getitem__(self, index: int) -> Transition:  # type: ignore[override]
        return super().__getitem__(index).without_action()


class Joined(Sequence[Transition]):
    """Sequence of the rows of two, one after the other."""

    def __init__(self, first: Sequence[Transition], second: Sequence[Transition]) -> None:
        self._first, self._second = first, second

    def __len__(self) -> int:
        return len(self._first) + len(self._second)

    def __getitem__(self, index: int) -> Transition:  # type: ignore[override]
        beyond = index - len(self._first)
        return self._first[index] if beyond < 0 else self._second[beyond]


def balanced(rows: Sequence[Transition]) -> Chosen:
    """Repeat labelled rows until each first word of an action, the verb, is as frequent as the most frequent one.

    It reads all actions, and tells how many rows there are now.
    """
    of_verb: dict[str, list[int]] = {}
    for number, action in enumerate(Labels(rows)):
        of_verb.setdefault(next(iter(_words(action)), ""), []).append(number)
    counts = sorted(map(len, of_verb.values()))
    chosen = [numbers[n % len(numbers)] for n in range(counts[-1]) for numbers in of_verb.values()]
    told = f"{len(rows)} labels of {len(counts)} verbs, {counts[0]} to {counts[-1]} of each"
    rank_zero_info(f"data.balanced_labels: {told}: by repeating them {len(chosen)}")
    return Chosen(rows, chosen)


def laps(number: int, count: int, random: np.random.Generator) -> NDArray[np.int_]:
    """Draw ``count`` of the numbers below ``number``: all in a random order, then all in another, and so on."""
    drawn = [random.permutation(number) for _ in range(0, count, max(1, number))]
    return np.concatenate([np.arange(0), *drawn])[:count]


def unopened(rows: Sequence[Transition]) -> Sequence[Any]:
    """Return the records of a split whose images are opened on access, for its ids and actions; else its rows."""
    return getattr(rows, "records", rows)


class Labels(Sequence[str]):
    """Sequence of the actions of a labelled split, read when they are accessed.

    No image is opened for them where :func:`unopened` knows how.
    """

    def __init__(self, rows: Sequence[Transition]) -> None:
        self._records = unopened(rows)

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> str:  # type: ignore[override]
        record = self._records[index]
        return Transition("", None, record.action, record.id).label


class Counterfactuals(Sequence[Transition]):
    """Sequence of pairs, each with its action of ``actions`` as counterfactual, or with none.

    Attributes:
        number: number of pairs with such an action.
        checksum: of these actions and their places.
    """

    def __init__(self, pairs: Sequence[Transition], actions: Sequence[str | None]) -> None:
        self._pairs, self._actions = pairs, actions
        self.number = sum(action is not None for action in actions)
        self.checksum = crc32("\0".join(action or "" for action in actions).encode())

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, index: int) -> Transition:  # type: ignore[override]
        pair, action = self._pairs[index], self._actions[index]
        return pair if action is None else replace(pair, counterfactual=action)


class Fitting:
    """Finds the actions that a state in words may allow: those of whose words it has all that states have at all.

    The first word, the verb, does not count, and neither does what no state has, as the ``up`` of ``pick up the key``.

    Args:
        actions: to choose from.
        states: of the labelled triples.
    """

    def __init__(self, actions: Sequence[str], states: Iterable[str]) -> None:
        known = {word for state in states for word in _words(state)}
        self._actions = actions
        self._bare: list[int] = []
        self._by_last: dict[str, list[tuple[int, set[str]]]] = {}
        for number, action in enumerate(actions):
            if named := [word for word in _words(action)[1:] if word in known]:
                self._by_last.setdefault(named[-1], []).append((number, set(named)))
            else:
                self._bare.append(number)

    def __call__(self, state: str) -> list[str]:
        """Return these actions, in order."""
        words = set(_words(state))
        found = [number for word in words for number, named in self._by_last.get(word, []) if named <= words]
        return [self._actions[number] for number in sorted([*self._bare, *found])]


def counterfactuals(
    pairs: Sequence[Transition],
    replaced: NDArray[np.bool_],
    labelled: Sequence[Transition],
    beginnings: Sequence[str] | None,
    possible: Callable[[str], Sequence[str] | None],
    random: np.random.Generator,
) -> Counterfactuals:
    """Draw a counterfactual action for some pairs.

    Args:
        pairs: P of them.
        replaced: P flags: those that get one, if their x allows any.
        labelled: triples with the actions to draw from.
        beginnings: how the actions begin; None for any.
        possible: actions that a state in words allows; None for those of the labels that fit it.
        random: source of the draws.

    Raises:
        ValueError: no label begins so. Where the x of some pairs allows no action, it warns with their number.
    """
    wanted = ("",) if beginnings is None else tuple(beginnings)
    labels: Sequence[str] = Labels(labelled)
    if beginnings is not None:
        labels = [action for action in labels if action.startswith(wanted)]
        if not labels:
            raise ValueError(f"no labelled action begins with one of data.counterfactual_actions, {beginnings}")
    draws = random.random(len(pairs)).tolist()
    asked = np.flatnonzero(replaced).tolist()
    found: list[str | None] = [None] * len(pairs)
    fitting = None
    if len(pairs) and isinstance(pairs[0].before, str):
        fitting = Fitting(labels, (str(state) for row in labelled for state in (row.before, row.after)))
    for index in asked:
        allowed: Sequence[str] = labels
        if fitting is not None:
            state = str(pairs[index].before)
            own = possible(state)
            allowed = fitting(state) if own is None else [action for action in own if action.startswith(wanted)]
        if allowed:
            found[index] = allowed[int(draws[index] * len(allowed))]
    count = sum(action is not None for action in found)
    if count < len(asked):
        rank_zero_warn(
            f"data.counterfactual_share: of {len(asked)} pairs, {count} have a state that allows one of these actions; "
            "the others are left as they are"
        )
    return Counterfactuals(pairs, found)


def _words(text: str) -> list[str]:
    return re.findall(r"[\w'-]+", text.lower())
