"""Random numbers that depend on what they are for, not on when they are drawn."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from swirl_lightning.engine.grammar import TokenIds


def uniforms(keys: Sequence[str], group_size: int, length: int) -> Tensor:
    """One uniform number in [0, 1) per token of every rollout: (B * G, length) float32, on the CPU.

    Each group draws from a generator of its own, seeded by its key. So a rollout depends on its key
    and its place in the group alone: not on the batch it is in, on the rank, or on what ran before.
    """
    rows = []
    for key in keys:
        seed = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little") >> 1
        generator = torch.Generator().manual_seed(seed)
        # whatever the default dtype: a half-precision Trainer sets it, and bfloat16 has 256 numbers below 1
        rows.append(torch.rand(group_size, length, generator=generator, dtype=torch.float32))
    return torch.cat(rows) if rows else torch.zeros(0, length)


def replace_tokens(ids: TokenIds, allowed: Sequence[int], most: float, numbers: Tensor) -> TokenIds:
    """``ids`` with a share of 0 to ``most`` of them replaced by any of ``allowed``.

    Args:
        ids: L token ids.
        allowed: what may stand in their place.
        most: upper end of the share, which is itself drawn.
        numbers: (3, >= L) uniform numbers: the share, where to replace, by what.
    """
    share, where, what = numbers.tolist()
    limit = most * share[0]
    return [
        allowed[int(value * len(allowed))] if hit < limit else token
        for token, hit, value in zip(ids, where, what, strict=False)
    ]
