"""Attention of completions to the one copy of their prompt, and of each to itself.

Softmax over both at once is put together from the two parts and their log-sum-exp, forward and backward, so that
nothing of a prompt is repeated for its completions (Hydragen, arXiv 2402.05099; Prefix Grouper, arXiv 2506.05433).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from swirl_lightning.engine.packing import Packing, Span

NAME = "swirl_sdpa"
"""What transformers calls it: ``sdpa``, but for keys that attend by themselves."""

_FLASH = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_FLASH_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


class Attending(Protocol):
    """What a cache hands to attention in place of keys, when keys of several kinds are to be seen."""

    def attend(self, query: Tensor, scaling: float) -> Tensor:
        """(N, heads, T, D) -> (N, T, heads, D)."""


def install(model: PreTrainedModel) -> bool:
    """Let a model that runs ``sdpa`` take :class:`Attending` keys, too; whether it does now.

    It does not if its attention does not go through transformers' interface, or if some of its layers do not see
    all that came before.
    """
    configs: list[Any] = [m.config for m in model.modules() if getattr(m, "config", None) is not None]
    decoder = model.config.get_text_config(decoder=True)
    kinds = set(getattr(decoder, "layer_types", None) or ["full_attention"])
    window = None if hasattr(decoder, "layer_types") else getattr(decoder, "sliding_window", None)
    fits = model._supports_attention_backend and kinds == {"full_attention"} and window is None
    if not fits or decoder._attn_implementation not in ("sdpa", NAME):
        return False
    for config in configs:
        if getattr(config, "_attn_implementation", None) == "sdpa":
            config._attn_implementation = NAME
    decoder._attn_implementation = NAME
    return True


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor | Attending,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    packing: Packing | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    if packing is not None:
        packing.heeded = True
        if packing.one_row:
            assert isinstance(key, Tensor)
            # under autocast rotated queries and keys are float32 beside values that are not; sdpa casts, kernels refuse
            same = query.to(value.dtype), key.to(value.dtype), value
            return PackedAttention.apply(*same, packing.spans, scaling).transpose(1, 2), None
    if isinstance(key, Tensor):
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)
    return key.attend(query, scaling), None


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, sdpa_mask)


def attend_rollouts(
    query: Tensor,
    prompt: tuple[Tensor, Tensor],
    own: tuple[Tensor, Tensor],
    scaling: float,
    hidden: Tensor | None = None,
    to_come: Tensor | None = None,
) -> Tensor:
    """One token of each of K rollouts a prompt; without gradient.

    Args:
        query: (B, H, K, D).
        prompt: keys and values of the prompts, (B, h, P, D) each; H / h queries share a head of them.
        own: keys and values of the rollouts, (B, h, K, T, D) each.
        scaling: of the products.
        hidden: (B, 1, 1, P) float, -inf where a prompt is padded; None: nowhere.
        to_come: (1, 1, 1, T) float, -inf where rollouts have not been yet; None: nowhere.

    Returns:
        (B, K, H, D).
    """
    batch, heads, width, size = query.shape
    shared = prompt[0].shape[1]
    share = heads // shared
    folded = query.reshape(batch, shared, share * width, size)
    seen, seen_lse = _attend(folded, *prompt, hidden, scaling)
    apart = query.view(batch, shared, share, width, size).transpose(2, 3).reshape(batch, shared * width, share, size)
    mine, mine_lse = _attend(apart, own[0].flatten(1, 2), own[1].flatten(1, 2), to_come, scaling)
    seen, seen_lse = (part.view(batch, shared, share, width, -1).transpose(2, 3) for part in (seen, seen_lse))
    mine, mine_lse = (part.view(batch, shared, width, share, -1) for part in (mine, mine_lse))
    out = torch.lerp(mine, seen, (seen_lse - mine_lse).sigmoid().to(mine.dtype))  # (B, h, K, H / h, D)
    return out.transpose(1, 2).reshape(batch, width, heads, size)


def _attend(query: Tensor, key: Tensor, value: Tensor, hidden: Tensor | None, scaling: float) -> tuple[Tensor, Tensor]:
    """All queries to all keys: (B, h, Q, D), (B, h, T, D) twice -> (B, h, Q, D) and log-sum-exp (B, h, Q, 1)."""
    if query.device.type != "cpu":
        return _attend_by_products(query, key, value, hidden, scaling)
    out, lse = _FLASH(query, key, value, attn_mask=hidden, scale=scaling)
    return out, lse[..., None]


def _attend_by_products(
    query: Tensor, key: Tensor, value: Tensor, hidden: Tensor | None, scaling: float
) -> tuple[Tensor, Tensor]:
    """What :func:`_attend` computes, on any device."""
    scores = (query @ key.transpose(-1, -2)).float() * scaling
    scores = scores if hidden is None else scores + hidden
    lse = scores.logsumexp(-1, keepdim=True)
    return (scores - lse).exp().to(value.dtype) @ value, lse


class PackedAttention(torch.autograd.Function):
    """Attention within a :class:`Packing` of one row; on CPUs alone.

    ``apply(query, key, value, spans, scaling)``: (1, H, T, D), (1, h, T, D) twice -> (1, H, T, D), where H / h queries
    share a head of keys and values.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, spans: Sequence[Span], scaling: float) -> Tensor:
        """Each sequence causally to itself, then the members' part of the prefix joined to it."""
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
        """The parts' own backward, each given the whole's output and log-sum-exp."""
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
    """Neighbours of one length as rows: (1, heads, T, D) -> (count, heads, length, D), a view."""
    start, count, length = run
    return part[0, :, start : start + count * length].unflatten(1, (count, length)).transpose(0, 1)


def _fold(part: Tensor, heads: int) -> Tensor:
    """Queries that share a head of keys, one after the other: (1, H, Q, D) -> (1, h, H / h * Q, D)."""
    return part.unflatten(1, (heads, -1)).flatten(2, 3)


def _unfold(part: Tensor, share: int) -> Tensor:
    """The inverse of :func:`_fold`."""
    return part.unflatten(2, (share, -1)).flatten(1, 2)
