"""Random numbers that depend on a key, not on the order in which they are drawn."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence

import torch
from torch import Tensor

from swirl_lightning.engine.grammar import TokenIds


def global_seed() -> int:
    """Return the seed that Lightning's ``seed_everything`` was called with, or 0 if it was not."""
    return int(os.environ.get("PL_GLOBAL_SEED", 0))


def uniforms(keys: Sequence[str], group_size: int, length: int) -> Tensor:
    """Draw one uniform number in [0, 1) per token of every rollout.

    Each group draws from its own generator, seeded by its key. So a rollout depends on its key
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
        seed = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little") >> 1
        generator = torch.Generator().manual_seed(seed)
        # whatever the default dtype: a half-precision Trainer sets it, and bfloat16 has 256 numbers below 1
        rows.append(torch.rand(group_size, length, generator=generator, dtype=torch.float32))
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
