"""Random numbers that depend on a key, not on the order in which they are drawn."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from swirl_lightning.engine.grammar import TokenIds


def global_seed() -> int:
    """Return the seed that Lightning's ``seed_everything`` was called with, or 0 if it was not."""
    return int(os.environ.get("PL_GLOBAL_SEED", 0))


def uniforms(keys: Sequence[str], group_size: int, length: int) -> Tensor:
    """Draw one uniform number in [0, 1) per token of every rollout.

    Each group draws from its own generator, of which its key sets all 128 bits (torch's have 32, and of 100,000 keys
    one pair or more would draw the same). So a rollout depends on its key
    and its index in the group alone: not on the batch, on the rank, or on what ran before.

    Args:
        keys: B keys, one per group.
        group_size: G.
        length: number of tokens of the longest rollout.

    Returns:
        (B * G, length) float32, on the CPU.
    """
    rows = []
    for key in keys:
        bits = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=16).digest(), "little")
        drawn = np.random.Generator(np.random.Philox(key=bits)).random((group_size, length), dtype=np.float32)
        rows.append(torch.from_numpy(drawn))
    return torch.cat(rows) if rows else torch.zeros(0, length)


def replace_tokens(ids: TokenIds, allowed: Sequence[int], most: float, numbers: Tensor) -> TokenIds:
    """Replace a random share of token ids, between 0 and ``most``, by random ids of ``allowed``.

    Args:
        ids: L token ids.
        allowed: ids that may replace them.
        most: upper end of the share, which is drawn uniformly.
        numbers: (3, >= L) uniform numbers: row 0 gives the share, row 1 the positions, row 2 the new ids.

    Returns:
        L token ids.
    """
    share, where, what = numbers.tolist()
    limit = most * share[0]
    return [
        allowed[int(value * len(allowed))] if hit < limit else token
        for token, hit, value in zip(ids, where, what, strict=False)
    ]
