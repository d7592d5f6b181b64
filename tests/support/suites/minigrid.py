"""Hashes of MiniGrid's transitions; as a command, that of 60 of them in a process of its own."""

from __future__ import annotations

import hashlib

from swirl_lightning.benchmarks.minigrid import generate
from swirl_lightning.transition import Transition


def fingerprint(rows: list[Transition]) -> str:
    digest = hashlib.sha256()
    for row in rows:
        digest.update(row.before.tobytes() + row.after.tobytes() + f"{row.action}{row.id}{row.meta}".encode())
    return digest.hexdigest()


if __name__ == "__main__":
    print(fingerprint(generate("test", 60, seed=3)))
