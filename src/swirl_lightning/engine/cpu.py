"""What is done on CPUs alone: how memory is taken and given back, and products of few rows."""

from __future__ import annotations

import ctypes
import sys
from contextlib import suppress

import torch
from torch import Tensor, nn

_M_MMAP_THRESHOLD = -3  # of mallopt(3)
OWN_MAPPING = 4 << 20
"""Bytes from which a block is mapped on its own, and so given back as soon as it is freed."""


def give_freed_blocks_back() -> None:
    """Keep activations out of glibc's heap, where the holes between them are lost.

    glibc raises its threshold to 32 MiB as soon as such a block is freed. Activations of some megabytes then
    lie in the heap, and a step's peak doubles (``docs/performance.md``). Other C libraries are left
    as they are.
    """
    if sys.platform == "linux":
        with suppress(AttributeError):
            ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, OWN_MAPPING)


FEW_ROWS = 32
"""Up to this many, MKL reads a weight twice as fast when it stands on the left (perf/, AMD Zen 3, float32)."""


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``torch.nn.functional.linear``: (..., in), (out, in) -> (..., out).

    The few rows of a decode step on a CPU are multiplied as (W xᵀ)ᵀ, the same sums in another order.
    """
    rows = x.numel() // max(1, x.shape[-1])
    if x.device.type != "cpu" or rows > FEW_ROWS or torch.is_grad_enabled() or x.dtype != torch.float32:
        return nn.functional.linear(x, weight, bias)
    out = torch.mm(weight, x.reshape(rows, -1).t()).t().contiguous().view(*x.shape[:-1], -1)
    return out if bias is None else out.add_(bias)
