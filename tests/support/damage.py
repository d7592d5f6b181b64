"""Random damage to records and files."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

ODD = [
    *(None, True, 0, -1, 7.5, float("inf"), float("nan"), 10**400),
    *("", " ", "x", "\ud83d", "a\0b", "x" * 5000, "../../x", "/etc/passwd", "\x1b[31m"),
    *([], {}, [[]], {"a": 1}, [1, "a"], ["x", "x"], json.loads("[" * 150 + "]" * 150)),
]


class Damage:
    """Random damage, the same for the same seed."""

    def __init__(self, seed: int) -> None:
        self.draw = random.Random(seed)

    def value(self, value: Any, share: float = 0.05) -> Any:
        """A JSON value with parts replaced, dropped or renamed."""
        if self.draw.random() < share:
            return self.draw.choice(ODD)
        if isinstance(value, list):
            return [self.value(item, share) for item in value if self.draw.random() > share / 3]
        if isinstance(value, dict):
            kept = {key: item for key, item in value.items() if self.draw.random() > share / 3}
            names = {key: self.draw.choice(["", "\ud800", "x\0", *[key] * 240]) for key in kept}
            return {names[key]: self.value(item, share) for key, item in kept.items()}
        return value

    def content(self, content: bytes, share: float = 0.3) -> bytes:
        """Bytes replaced, cut off, or behind a byte order mark."""
        damaged = bytearray(content)
        if self.draw.random() < share:
            for _ in range(self.draw.choice((1, 3, 20))):
                damaged[self.draw.randrange(len(damaged))] = self.draw.randrange(256)
        if self.draw.random() < share / 2:
            del damaged[self.draw.randrange(len(damaged)) :]
        return b"\xef\xbb\xbf" * (self.draw.random() < share / 3) + bytes(damaged)

    def lists(self, path: Path, records: Any, lines: bool = False) -> None:
        """A damaged file of records."""
        path.parent.mkdir(parents=True, exist_ok=True)
        damaged = [self.value(record) for record in records] if lines else self.value(records)
        text = "\n".join(map(json.dumps, damaged)) if lines else json.dumps(damaged)
        path.write_bytes(self.content(text.encode()))
