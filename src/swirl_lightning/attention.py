"""Attention of completions to the one copy of their prompt's keys and values, and each to its own.

Softmax over both at once is put together from the two parts and their log-sum-exp, forward and backward, so that
nothing of a prompt is repeated for its completions (Hydragen, arXiv 2402.05099; Prefix Grouper, arXiv 2506.05433).
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

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
    **kwargs: Any,
) -> tuple[Tensor, None]:
    if isinstance(key, Tensor):
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)
    return key.attend(query, query.shape[-1] ** -0.5 if scaling is None else scaling), None


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, sdpa_mask)


def attend_rollouts(
    query: Tensor, prompt: tuple[Tensor, Tensor], own: tuple[Tensor, Tensor], hidden: Tensor | None, scaling: float
) -> Tensor:
    """One token of each of K rollouts a prompt; without gradient.

    Args:
        query: (B, H, K, D).
        prompt: keys and values of the prompts, (B, h, P, D) each; H / h queries share a head of them.
        own: keys and values of the rollouts, (B, h, K, T, D) each.
        hidden: (B, 1, 1, P) float, -inf where a prompt is padded; None: nowhere.
        scaling: of the products.

    Returns:
        (B, K, H, D).
    """
    batch, heads, width, size = query.shape
    shared = prompt[0].shape[1]
    share = heads // shared
    folded = query.reshape(batch, shared, share * width, size)
    seen, seen_lse = _attend(folded, *prompt, hidden, scaling)
    apart = query.view(batch, shared, share, width, size).transpose(2, 3).reshape(batch, shared * width, share, size)
    mine, mine_lse = _attend(apart, own[0].flatten(1, 2), own[1].flatten(1, 2), None, scaling)
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


class GroupAttention(torch.autograd.Function):
    """Causal attention of each group's completions to themselves and to their group's prefix; on CPUs alone.

    ``apply(query, key, value, bounds, scaling, *prefixes)`` -> (N, H, C, D)

    Args:
        query: (N, H, C, D), padded on the right.
        key: (N, H, C, D) of the completions themselves.
        value: the same.
        bounds: rows ``bounds[n]`` to ``bounds[n + 1]`` belong to group n.
        scaling: of the products.
        prefixes: keys of each group's prefix, (1, h, P, D) each, then as many values; P may be 0.
    """

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, bounds: list[int], scaling: float, *prefixes: Tensor
    ) -> Tensor:
        """Put the parts together."""
        out, lse = _FLASH(query, key, value, 0.0, True, scale=scaling)
        groups = len(bounds) - 1
        for n, (start, end) in enumerate(pairwise(bounds)):
            if prefixes[n].shape[2] == 0:
                continue
            folded = _fold(query[start:end], prefixes[n].shape[1])
            seen, seen_lse = _FLASH(folded, prefixes[n], prefixes[groups + n], scale=scaling)
            seen, seen_lse = (_unfold(part, query[start:end].shape) for part in (seen, seen_lse[..., None]))
            weight = (seen_lse[..., 0] - lse[start:end]).sigmoid()[..., None]
            lse[start:end] = torch.logaddexp(lse[start:end], seen_lse[..., 0])
            out[start:end].lerp_(seen, weight.to(out.dtype))
        ctx.save_for_backward(query, key, value, out, lse, *prefixes)
        ctx.bounds, ctx.scaling = bounds, scaling
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:
        """The parts' own backward, given the whole's output and log-sum-exp."""
        query, key, value, out, lse, *prefixes = ctx.saved_tensors
        (grad,) = grads
        groups = len(ctx.bounds) - 1
        grad_query, *grads_own = _FLASH_BACKWARD(grad, query, key, value, out, lse, 0.0, True, scale=ctx.scaling)
        grads_prefix = [torch.zeros_like(part) for part in prefixes]
        for n, (start, end) in enumerate(pairwise(ctx.bounds)):
            if prefixes[n].shape[2] == 0:
                continue
            rows, heads = slice(start, end), prefixes[n].shape[1]
            folded = [_fold(part[rows], heads) for part in (grad, query, out, lse[..., None])]
            g, grads_prefix[n], grads_prefix[groups + n] = _FLASH_BACKWARD(
                *folded[:2], prefixes[n], prefixes[groups + n], folded[2], folded[3][..., 0], 0.0, False,
                scale=ctx.scaling,
            )  # fmt: skip
            grad_query[rows] += _unfold(g, query[rows].shape)
        return grad_query, *grads_own, None, None, *grads_prefix


def _fold(part: Tensor, heads: int) -> Tensor:
    """Queries of n rows as those of one: (n, H, C, D) -> (1, h, n * H / h * C, D)."""
    rows, _, length, size = part.shape
    return part.view(rows, heads, -1, length, size).transpose(0, 1).reshape(1, heads, -1, size)


def _unfold(part: Tensor, shape: torch.Size) -> Tensor:
    """The inverse of :func:`_fold`, to (n, H, C, ...) of ``shape``."""
    rows, _, length, _ = shape
    heads = part.shape[1]
    return part.view(heads, rows, -1, length, part.shape[-1]).transpose(0, 1).reshape(rows, -1, length, part.shape[-1])
