"""Attention within a :class:`swirl_lightning.engine.packing.Packing`: prefixes once, forward and backward."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from transformers.integrations.sdpa_attention import repeat_kv

from swirl_lightning.engine.kernels import kernel
from swirl_lightning.engine.packing import Span


class PackedAttention(torch.autograd.Function):
    """Attention of sequences that lie one after the other in one row.

    ``apply(query, key, value, spans, scaling)``: (1, H, T, D), (1, h, T, D) twice -> (1, H, T, D), where H / h queries
    share a head of keys and values.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, spans: Sequence[Span], scaling: float) -> Tensor:
        """Attend causally within each sequence, then combine members with the attention to their prefix."""
        attend = kernel(query.device, query.dtype, query.shape[-1]).forward
        out = query.new_empty(query.shape)
        lse = query.new_empty(
            *query.shape[:3], 1, dtype=torch.float64 if query.dtype == torch.float64 else torch.float32
        )
        share, few = query.shape[1] // key.shape[1], key.shape[1]
        for span in spans:
            for run in span.runs():
                q, k, v = _cut(query, run), *(repeat_kv(_cut(part, run), share) for part in (key, value))
                own, own_lse = attend(q, k, v, True, scaling)
                _cut(out, run).copy_(own)
                _cut(lse, run).copy_(own_lse[..., None])
            if not span.prefix:
                continue
            prefix, members = span.both()
            seen, seen_lse = attend(
                _fold(query[:, :, members], few), key[:, :, prefix], value[:, :, prefix], False, scaling
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
        attend_back = kernel(query.device, query.dtype, query.shape[-1]).backward
        share, few = query.shape[1] // key.shape[1], key.shape[1]
        found = [part.new_empty(part.shape) for part in (query, key, value)]
        for span in ctx.spans:
            for run in span.runs():
                g, q, o, z = (_cut(part, run) for part in (grad, query, out, lse))
                k, v = (repeat_kv(_cut(part, run), share) for part in (key, value))
                parts = attend_back(g, q, k, v, o, z[..., 0].contiguous(), True, ctx.scaling)
                for whole, part in zip(found, parts, strict=True):
                    into = _cut(whole, run)
                    into.copy_(part.unflatten(1, (into.shape[1], -1)).sum(2))
            if not span.prefix:
                continue
            prefix, members = span.both()
            g, q, o, z = (_fold(part[:, :, members], few) for part in (grad, query, out, lse))
            k, v = key[:, :, prefix], value[:, :, prefix]
            parts = attend_back(g, q, k, v, o, z[..., 0].contiguous(), False, ctx.scaling)
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
