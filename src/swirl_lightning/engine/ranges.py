"""Numbers that a user sets: refused by name where they lie outside their range, before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

SHORTEST, LONGEST = 2, 2**20
"""Tokens of a state or an action: one and the EOS, and more than any model reads."""
TOKEN_COUNTS = f"[{SHORTEST}, {LONGEST}]"


def check_ranges(where: str, values: Mapping[str, Any], /, **ranges: str) -> None:
    """Raise ValueError for the first number outside its range; NaN lies in none, and infinity outside ``inf)``.

    So does what no 64-bit integer holds: libraries fail on it, and some only after the base is loaded.

    Args:
        where: of the options in the configuration, as ``model.grpo``.
        values: of the options by name, others among them.
        ranges: by name, as intervals: ``[0, inf)`` has 0 and ``(0, inf)`` has not; with `` or null``, None may stand.

    Example:
        >>> from swirl_lightning.engine.ranges import check_ranges
        >>> check_ranges("model.sampling", {"top_p": 0.9, "top_k": None}, top_p="(0, 1]", top_k="[1, inf) or null")
    """
    for name, allowed in ranges.items():
        value = values[name]
        interval, _, null = allowed.partition(" or ")
        low, high = map(float, interval[1:-1].split(","))
        if value is None:
            inside = bool(null)
        else:
            above = value >= low if interval[0] == "[" else value > low
            inside = above and (value <= high if interval[-1] == "]" else value < high) and abs(value) < 2**63
        if not inside:
            size = " and be smaller than 2^63" if value is not None and abs(value) >= 2**63 else ""
            raise ValueError(f"{where}.{name} must lie in {allowed}{size}, got {value}")
