"""Everything that is done on CPUs alone: memory of the C library, products of few rows, sorting, and decoding."""

from __future__ import annotations

import ctypes
import sys
from contextlib import suppress

import numpy as np
import torch
from torch import Tensor, nn

_FLASH = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu

_M_MMAP_THRESHOLD = -3  # of mallopt(3)
OWN_MAPPING = 4 << 20
"""Size in bytes from which a block is mapped on its own, and so returned as soon as it is freed."""


def give_freed_blocks_back(device: torch.device) -> None:
    """Keep activations on a CPU out of glibc's heap, where the gaps between them stay unused.

    glibc raises its threshold to 32 MiB as soon as such a block is freed. Activations of some megabytes then
    lie in the heap, and a step's peak doubles (``docs/performance.md``). Other C libraries are left
    as they are.
    """
    if device.type == "cpu" and sys.platform == "linux":
        with suppress(AttributeError):
            ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, OWN_MAPPING)


FEW_ROWS = 32
"""Number of rows up to which MKL reads a weight twice as fast as the left factor (perf/, AMD Zen 3, float32)."""


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Compute ``torch.nn.functional.linear``: (..., in), (out, in) -> (..., out).

    The few rows of a decode step on a CPU are multiplied as (W xᵀ)ᵀ, the same sums in another order.
    """
    rows = x.numel() // max(1, x.shape[-1])
    if x.device.type != "cpu" or rows > FEW_ROWS or torch.is_grad_enabled() or x.dtype != torch.float32:
        return nn.functional.linear(x, weight, bias)
    out = torch.mm(weight, x.reshape(rows, -1).t()).t().contiguous().view(*x.shape[:-1], -1)
    return out if bias is None else out.add_(bias)


def sort_falling(rows: Tensor) -> Tensor:
    """Sort each row of (N, V) in falling order; NumPy's vectorised sort is some fifty times faster than torch's."""
    return torch.from_numpy(np.sort(rows.numpy(), axis=-1)).flip(-1)


def attend(query: Tensor, key: Tensor, value: Tensor, hidden: Tensor | None, scaling: float) -> tuple[Tensor, Tensor]:
    """Attend with all queries to all keys, by torch's flash kernel.

    Args:
        query: (B, h, Q, D).
        key: (B, h, T, D).
        value: (B, h, T, D).
        hidden: added to the products, broadcast to (B, h, Q, T); -inf hides a key. None: every key is seen.
        scaling: of the products.

    Returns:
        (B, h, Q, D), and log-sum-exp of the products (B, h, Q, 1).
    """
    out, lse = _FLASH(query, key, value, attn_mask=hidden, scale=scaling)
    return out, lse[..., None]
