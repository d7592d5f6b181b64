"""Random choices that depend on names and a seed alone."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping


def halves(episodes: Mapping[str, str], seed: int) -> tuple[set[str], set[str]]:
    """Split episodes at random into labelled and state-only ones, half each, the same for the same seed.

    Args:
        episodes: name of each and its stratum (a task, say); each stratum is halved, up to one episode.
        seed: of the choice.
    """
    order = sorted(episodes, key=lambda name: (episodes[name], rank_of(name, seed)))
    return set(order[::2]), set(order[1::2])


def rank_of(name: str, seed: int) -> bytes:
    """Return a place in a random order, which depends on the name and the seed alone."""
    return hashlib.blake2b(f"{seed}|{name}".encode(), digest_size=8).digest()
