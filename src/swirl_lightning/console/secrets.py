"""Keys kept out of messages and files."""

from __future__ import annotations

import re
from itertools import groupby

from swirl_lightning.console.run import printable

_SECRET = 8  # characters; a shorter key is a word such as "none", and no secret
_LONGEST = 300  # characters of a server's message that are shown


def redacted(text: str, key: str) -> str:
    """A server's words, 300 characters at most, without the key, eight characters of it, or what looks like a key."""
    text = text[: 10 * _LONGEST]
    parts = {key[start : start + _SECRET] for start in range(len(key) - _SECRET + 1)}
    starts = [start for start in range(len(text)) if text[start : start + _SECRET] in parts]
    hidden = {place for start in starts for place in range(start, start + _SECRET)}
    runs = groupby(range(len(text)), hidden.__contains__)
    text = "".join("[key]" if secret else "".join(text[place] for place in places) for secret, places in runs)
    text = re.sub(r"\b(sk|key)[-_][^\s\"']+", "[key]", text)
    return printable(text[:_LONGEST])


def without_key(text: str, key: str) -> str:
    """A text without the literal key."""
    return text.replace(key, "[key]") if len(key) >= _SECRET else text
