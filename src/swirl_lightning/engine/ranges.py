"""Numbers that a user sets: refused by name where they lie outside their range, before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any

SHORTEST, LONGEST = 2, 2**20
"""Tokens of a state or an action: one and the EOS, and more than any model reads."""
TOKEN_COUNTS = f"whole [{SHORTEST}, {LONGEST}]"
_KINDS: dict[str, Any] = {"a number": Real, "an integer": Integral}


def check_ranges(where: str, values: Mapping[str, Any], /, **ranges: str) -> None:
    """Raise ValueError for the first value that is no number of its range; NaN lies in none, infinity outside ``inf)``.

    So does what no 64-bit integer holds: libraries fail on it, and some only after the base is loaded.

    Args:
        where: of the options in the configuration, as ``model.grpo``.
        values: of the options by name, others among them.
        ranges: by name, as intervals: ``[0, inf)`` has 0 and ``(0, inf)`` has not; with ``whole `` before them,
            integers alone; with `` or null``, None may stand.

    Example:
        >>> from swirl_lightning.engine.ranges import check_ranges
        >>> check_ranges("model", {"top_p": 0.9, "top_k": None}, top_p="(0, 1]", top_k="whole [1, inf) or null")
    """
    for name, given in ranges.items():
        value, allowed = values[name], given.removeprefix("whole ")
        interval, _, null = allowed.partition(" or ")
        if null and value is None:
            continue
        told = "a number" if given == allowed else "an integer"
        if not isinstance(value, _KINDS[told]) or isinstance(value, bool):
            raise ValueError(f"{where}.{name} must be {told} in {allowed}, got {value!r}")
        low, high = map(float, interval[1:-1].split(","))
        above = value >= low if interval[0] == "[" else value > low
        inside = above and (value <= high if interval[-1] == "]" else value < high)
        small = abs(value) < 2**63
        if not (inside and small):
            size = " and be smaller than 2^63" if inside else ""
            raise ValueError(f"{where}.{name} must lie in {allowed}{size}, got {value}")
