"""Shares of the kinds of action in a split of a simulated world."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping

_MOST = 1e9
"""A share beyond it is a slip, and products with it may leave the range of numbers."""


def check_shares(world: str, shares: Mapping[str, float], kinds: Collection[str]) -> None:
    """Check proportions of kinds of action.

    Raises:
        ValueError: one is of no kind, negative, no number or above 1e9, or all are 0.
    """
    if (
        not set(shares) <= set(kinds)
        or not all(0 <= share <= _MOST for share in shares.values())
        or not any(shares.values())
    ):
        raise ValueError(f"shares of {world} actions are numbers >= 0 by kind, of {list(kinds)}; got {dict(shares)}")


def quotas(n: int, shares: Mapping[str, float]) -> Counter[str]:
    """Return how many of n transitions are of each kind, by largest remainders.

    Args:
        n: number of transitions.
        shares: proportions of the kinds, not all 0.
    """
    total = sum(shares.values())
    exact = {kind: n * share / total for kind, share in shares.items()}
    found = Counter({kind: int(value) for kind, value in exact.items()})
    by_remainder = sorted(exact, key=lambda kind: found[kind] - exact[kind])
    found.update(by_remainder[: n - found.total()])
    return found
