"""Sequences of transitions that a phase is given, made of those of splits."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from zlib import crc32

from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from swirl_lightning.transition import Transition


class StateOnly(Sequence[Transition]):
    """Sequence of chosen rows of a split, without their actions."""

    def __init__(self, rows: Sequence[Transition], chosen: list[int]) -> None:
        self._rows = rows
        self._chosen = chosen

    def __len__(self) -> int:
        return len(self._chosen)

    def __getitem__(self, index: int) -> Transition:  # type: ignore[override]
        return self._rows[self._chosen[index]].without_action()


class Labels(Sequence[str]):
    """Sequence of the actions of a labelled split, read when they are accessed."""

    def __init__(self, rows: Sequence[Transition]) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> str:  # type: ignore[override]
        return self._rows[index].label


class Counterfactuals(Sequence[Transition]):
    """Sequence of pairs, each with a chosen action as counterfactual, or with none where that is -1.

    Attributes:
        number: number of pairs with such an action.
        checksum: of these actions and their places.
    """

    def __init__(self, pairs: Sequence[Transition], actions: Sequence[str], chosen: list[int]) -> None:
        self._pairs, self._actions, self._chosen = pairs, actions, chosen
        self.number = sum(number >= 0 for number in chosen)
        self.checksum = crc32("\0".join("" if n < 0 else actions[n] for n in chosen).encode())

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, index: int) -> Transition:  # type: ignore[override]
        pair, chosen = self._pairs[index], self._chosen[index]
        return pair if chosen < 0 else replace(pair, counterfactual=self._actions[chosen])


class Fitting:
    """Finds the actions that a state in words may allow: those of whose words it has all but the first, the verb.

    Args:
        actions: to choose from.
    """

    def __init__(self, actions: Sequence[str]) -> None:
        self._bare: list[int] = []
        self._by_last: dict[str, list[tuple[int, set[str]]]] = {}
        for number, action in enumerate(actions):
            _, *named = _words(action) or [""]
            if named:
                self._by_last.setdefault(named[-1], []).append((number, set(named)))
            else:
                self._bare.append(number)

    def __call__(self, state: str) -> list[int]:
        """Return the numbers of these actions, in order."""
        words = set(_words(state))
        found = [number for word in words for number, named in self._by_last.get(word, []) if named <= words]
        return sorted([*self._bare, *found])


def fitted(pairs: Sequence[Transition], actions: Sequence[str], chosen: Sequence[int]) -> list[int]:
    """Replace each chosen action by one that its pair's x, in words, has the words of; by -1 where there is none.

    Raises:
        ValueError: there is none for any pair. For some, it warns with their number.
    """
    allowed, found = Fitting(actions), list(chosen)
    asked = [index for index, number in enumerate(chosen) if number >= 0]
    for index in asked:
        fitting = allowed(str(pairs[index].before))
        found[index] = fitting[chosen[index] % len(fitting)] if fitting else -1
    count = sum(number >= 0 for number in found)
    told = f"data.counterfactual_share: of {len(asked)} pairs, {count} have a state with the words of an action"
    if asked and not count:
        raise ValueError(f"{told} of the labels; set it to 0, or other data.counterfactual_actions")
    if count < len(asked):
        rank_zero_warn(f"{told}; the others are left as they are")
    return found


def _words(text: str) -> list[str]:
    return re.findall(r"[\w'-]+", text.lower())


class Joined(Sequence[Transition]):
    """Sequence of pairs, and of chosen rows of a labelled split behind them."""

    def __init__(self, pairs: Sequence[Transition], labelled: Sequence[Transition], chosen: list[int]) -> None:
        self._pairs, self._labelled, self._chosen = pairs, labelled, chosen

    def __len__(self) -> int:
        return len(self._pairs) + len(self._chosen)

    def __getitem__(self, index: int) -> Transition:  # type: ignore[override]
        beyond = index - len(self._pairs)
        return self._pairs[index] if beyond < 0 else self._labelled[self._chosen[beyond]]
