"""Everything that is done on CPUs alone: memory of the C library, products of few rows, sorting, and attention."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers.integrations.sdpa_attention import repeat_kv

from swirl_lightning.engine.packing import Span

_FLASH = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_FLASH_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward

_M_MMAP_THRESHOLD = -3  # of mallopt(3)
OWN_MAPPING = 4 << 20
"""Size in bytes from which a block is mapped on its own, and so returned as soon as it is freed."""


def give_freed_blocks_back() -> None:
    """Keep activations out of glibc's heap, where the gaps between them stay unused.

    glibc raises its threshold to 32 MiB as soon as such a block is freed. Activations of some megabytes then
    lie in the heap, and a step's peak doubles (``docs/performance.md``). Other C libraries are left
    as they are.
    """
    if sys.platform == "linux":
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


class PackedAttention(torch.autograd.Function):
    """Attention within a :class:`swirl_lightning.engine.packing.Packing` of one row.

    ``apply(query, key, value, spans, scaling)``: (1, H, T, D), (1, h, T, D) twice -> (1, H, T, D), where H / h queries
    share a head of keys and values.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, spans: Sequence[Span], scaling: float) -> Tensor:
        """Attend causally within each sequence, then combine members with the attention to their prefix."""
        out = query.new_empty(query.shape)
        lse = query.new_empty(
            *query.shape[:3], 1, dtype=torch.float64 if query.dtype == torch.float64 else torch.float32
        )
        share, few = query.shape[1] // key.shape[1], key.shape[1]
        for span in spans:
            for run in span.runs():
                q, k, v = _cut(query, run), *(repeat_kv(_cut(part, run), share) for part in (key, value))
                own, own_lse = _FLASH(q, k, v, 0.0, True, scale=scaling)
                _cut(out, run).copy_(own)
                _cut(lse, run).copy_(own_lse[..., None])
            if not span.prefix:
                continue
            prefix, members = span.both()
            seen, seen_lse = _FLASH(
                _fold(query[:, :, members], few), key[:, :, prefix], value[:, :, prefix], scale=scaling
            )
            seen, seen_lse = (_unfold(part, share) for part in (seen, seen_lse[..., None]))
            weight = (seen_lse - lse[:, :, members]).sigmoid()
            lse[:, :, members] = torch.logaddexp(lse[:, :, members], seen_lse)
            out[:, :, members].lerp_(seen, weight.to(out.dtype))
        ctx.save_for_backward(query, key, value, out, lse)
        ctx.spans, ctx.scaling = spans, scaling
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:
        """Run the backward pass of each part, given output and log-sum-exp of the whole."""
        query, key, value, out, lse = ctx.saved_tensors
        (grad,) = grads
        share, few = query.shape[1] // key.shape[1], key.shape[1]
        found = [part.new_empty(part.shape) for part in (query, key, value)]
        for span in ctx.spans:
            for run in span.runs():
                g, q, o, z = (_cut(part, run) for part in (grad, query, out, lse))
                k, v = (repeat_kv(_cut(part, run), share) for part in (key, value))
                parts = _FLASH_BACKWARD(g, q, k, v, o, z[..., 0].contiguous(), 0.0, True, scale=ctx.scaling)
                for whole, part in zip(found, parts, strict=True):
                    into = _cut(whole, run)
                    into.copy_(part.unflatten(1, (into.shape[1], -1)).sum(2))
            if not span.prefix:
                continue
            prefix, members = span.both()
            g, q, o, z = (_fold(part[:, :, members], few) for part in (grad, query, out, lse))
            k, v = key[:, :, prefix], value[:, :, prefix]
            parts = _FLASH_BACKWARD(g, q, k, v, o, z[..., 0], 0.0, False, scale=ctx.scaling)
            found[0][:, :, members] += _unfold(parts[0], share)
            found[1][:, :, prefix] += parts[1]
            found[2][:, :, prefix] += parts[2]
        return *found, None, None


def _cut(part: Tensor, run: tuple[int, int, int]) -> Tensor:
    """View members of equal length as rows: (1, heads, T, D) -> (count, heads, length, D)."""
    start, count, length = run
    return part[0, :, start : start + count * length].unflatten(1, (count, length)).transpose(0, 1)


def _fold(part: Tensor, heads: int) -> Tensor:
    """Put queries that share a head of keys one after the other: (1, H, Q, D) -> (1, h, H / h * Q, D)."""
    return part.unflatten(1, (heads, -1)).flatten(2, 3)


def _unfold(part: Tensor, share: int) -> Tensor:
    """Invert :func:`_fold`: (1, h, H / h * Q, D) -> (1, H, Q, D)."""
    return part.unflatten(2, (share, -1)).flatten(1, 2)
