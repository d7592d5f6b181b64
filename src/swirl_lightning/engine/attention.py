"""Attention of completions to the one copy of their prompt, and of each to itself.

Softmax over both at once is put together from the two parts and their log-sum-exp, forward and backward, so that
nothing of a prompt is repeated for its completions (Hydragen, arXiv 2402.05099; Prefix Grouper, arXiv 2506.05433).
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from swirl_lightning.engine import cpu
from swirl_lightning.engine.kernels import weigh
from swirl_lightning.engine.packed_attention import PackedAttention
from swirl_lightning.engine.packing import Packing

NAME = "swirl_sdpa"
"""Our name in transformers' attention registry: ``sdpa``, extended by :class:`Attending` keys and packing."""


class Attending(Protocol):
    """Object that a cache returns in place of keys if a query attends to several sets of keys and values."""

    def attend(self, query: Tensor, scaling: float) -> Tensor:
        """Attend with queries (N, heads, T, D) to all keys; returns (N, T, heads, D)."""


def install(model: PreTrainedModel) -> bool:
    """Replace ``sdpa`` in a model by our attention, which takes :class:`Attending` keys and ``packing``, too.

    Args:
        model: loaded with ``attn_implementation: sdpa``; its configs are changed in place.

    Returns:
        Whether the model now runs our attention. It does not if its attention does not go through transformers'
        interface, or if a layer does not attend to all tokens before it (a sliding window).
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
        packing.used = True
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
    """Attend with W successive tokens of each of K rollouts per prompt; without gradient.

    Args:
        query: (B, H, K * W, D); the tokens of a rollout are neighbours.
        prompt: keys and values of the prompts, (B, h, P, D) each; H / h queries share a head of them.
        own: keys and values of the rollouts, (B, h, K, T, D) each.
        scaling: of the products.
        hidden: (B, 1, 1, P) float, -inf where a prompt is padded; None: nowhere.
        to_come: (B or 1, K or 1, W, T) float, -inf where the key of a token comes after the query; None: nowhere.

    Returns:
        (B, K * W, H, D).
    """
    batch, heads, count, size = query.shape
    shared, width = prompt[0].shape[1], own[0].shape[2]
    share, window = heads // shared, count // width
    folded = query.reshape(batch, shared, share * count, size)
    seen, seen_lse = _attend(folded, *prompt, hidden, scaling)
    apart = query.view(batch, shared, share, width, window, size).transpose(2, 3)  # (B, h, K, H / h, W, D)
    if to_come is not None and to_come.shape[:3] != (1, 1, 1):
        to_come = to_come[:, None, :, None].expand(batch, shared, width, share, window, -1)
        to_come = to_come.reshape(batch, shared * width, share * window, -1)
    mine, mine_lse = _attend(
        apart.reshape(batch, shared * width, share * window, size),
        own[0].flatten(1, 2),
        own[1].flatten(1, 2),
        to_come,
        scaling,
    )
    seen, seen_lse = (part.view(batch, shared, share, width, window, -1).transpose(2, 3) for part in (seen, seen_lse))
    mine, mine_lse = (part.view(batch, shared, width, share, window, -1) for part in (mine, mine_lse))
    out = torch.lerp(mine, seen, (seen_lse - mine_lse).sigmoid().to(mine.dtype))
    return out.permute(0, 2, 4, 1, 3, 5).reshape(batch, count, heads, size)


def _attend(query: Tensor, key: Tensor, value: Tensor, hidden: Tensor | None, scaling: float) -> tuple[Tensor, Tensor]:
    """Attend with all queries to all keys; arguments and results as :func:`swirl_lightning.engine.cpu.attend`."""
    work = cpu.attend if query.device.type == "cpu" else _attend_by_products
    return work(query, key, value, hidden, scaling)


def _attend_by_products(
    query: Tensor, key: Tensor, value: Tensor, hidden: Tensor | None, scaling: float
) -> tuple[Tensor, Tensor]:
    """Compute :func:`_attend` by two matrix products, on any device."""
    scores = (query @ key.transpose(-1, -2)).float() * scaling
    out, lse = weigh(scores if hidden is None else scores + hidden, value)
    return out, lse[..., None]
