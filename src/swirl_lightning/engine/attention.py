"""Attention of completions to the one copy of their prompt, and of each to itself.

Softmax over both at once is put together from the two parts and their log-sum-exp, forward and backward, so that
nothing of a prompt is repeated for its completions (Hydragen, arXiv 2402.05099; Prefix Grouper, arXiv 2506.05433).
"""

from __future__ import annotations

import math
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from swirl_lightning.engine import cpu
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
        interface, if a layer does not attend to all tokens before it (a sliding window), or with compressed keys.
    """
    configs: list[Any] = [m.config for m in model.modules() if getattr(m, "config", None) is not None]
    decoder = model.config.get_text_config(decoder=True)
    kinds = set(getattr(decoder, "layer_types", None) or ["full_attention"])
    window = None if hasattr(decoder, "layer_types") else getattr(decoder, "sliding_window", None)
    narrow = window is not None and window < getattr(decoder, "max_position_embeddings", math.inf)
    compressed = getattr(decoder, "kv_lora_rank", None) is not None  # DeepSeek's, expanded after they have been cached
    fits = model._supports_attention_backend and kinds == {"full_attention"} and not (narrow or compressed)
    if not fits or decoder._attn_implementation not in ("sdpa", NAME):
        return False
    for config in configs:
        if getattr(config, "_attn_implementation", None) == "sdpa":
            config._attn_implementation = NAME
    decoder._attn_implementation = NAME
    return True


def attention_dtype(value: Tensor) -> torch.dtype:
    """Return in which dtype attention computes: that of the values, under autocast its own, as for torch's sdpa.

    Under autocast queries, keys and values may have three: rotated ones and those after a norm are float32.
    """
    kind = value.device.type
    cast = torch.is_autocast_enabled(kind) and value.dtype != torch.float64
    return torch.get_autocast_dtype(kind) if cast else value.dtype


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
    if not isinstance(key, Tensor):
        with torch.autocast(query.device.type, enabled=False):  # it would round scores
            return key.attend(query, scaling), None
    if packing is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)
    packing.used, dtype = True, attention_dtype(value)
    with torch.autocast(query.device.type, enabled=False):
        out = PackedAttention.apply(query.to(dtype), key.to(dtype), value.to(dtype), packing.spans, scaling)
    return out.transpose(1, 2).contiguous(), None  # as sdpa's


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, sdpa_mask)


class Seen:
    """Keys that the queries of a pass may attend to, the same in all layers.

    Args:
        prompts: (B, 1, 1, P) of 0 and 1, 0 where a prompt is padded; None: nowhere.
        dtype: of keys and values.
    """

    def __init__(self, prompts: Tensor | None, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self.prompts = None if prompts is None else _bias(prompts, dtype)
        self.own: Tensor | None = None
        self._both: Tensor | None = None

    def begin(self, own: Tensor | None) -> None:
        """Begin a pass, in which token w of a rollout may attend to its tokens ``own``, (B or 1, K or 1, W, T) bool.

        None: to all that there are.
        """
        self.own, self._both = None if own is None else _bias(own, self._dtype), None

    def keep(self, prompts: Tensor) -> None:
        """Keep the prompts with indices (b,)."""
        self.prompts = None if self.prompts is None else self.prompts[prompts]

    def both(self, shared: int, own: int) -> Tensor | None:
        """Return one float32 bias for P + T keys, (B or 1, 1, 1, K or 1, W or 1, P + T); None: all are seen."""
        if self._both is None and not (self.prompts is None and self.own is None):
            some: Any = self.prompts if self.own is None else self.own
            first = some.new_zeros(1, 1, 1, shared) if self.prompts is None else self.prompts
            last = some.new_zeros(1, 1, 1, own) if self.own is None else self.own
            shape = (max(len(first), len(last)), *last.shape[1:3])
            parts = first.expand(*shape, -1), last.expand(*shape, -1)
            self._both = torch.cat(parts, -1).float()[:, None, None]
        return self._both


def _bias(seen: Tensor, dtype: torch.dtype) -> Tensor:
    return seen.to(dtype).log()  # 0 and -inf


def attend_rollouts(
    query: Tensor, prompt: tuple[Tensor, Tensor], own: tuple[Tensor, Tensor], scaling: float, seen: Seen
) -> Tensor:
    """Attend with W successive tokens of each of K rollouts per prompt; without gradient.

    Args:
        query: (B, H, K * W, D); the tokens of a rollout are neighbours.
        prompt: keys and values of the prompts, (B, h, P, D) each; H / h queries share a head of them.
        own: keys and values of the rollouts, (B, h, K, T, D) each.
        scaling: of the products.
        seen: tells which keys count.

    Returns:
        (B, K * W, H, D).
    """
    return (_in_parts if query.device.type == "cpu" else _at_once)(query, prompt, own, scaling, seen)


def _in_parts(
    query: Tensor, prompt: tuple[Tensor, Tensor], own: tuple[Tensor, Tensor], scaling: float, seen: Seen
) -> Tensor:
    """Compute :func:`attend_rollouts` by torch's flash kernel for prompts and for rollouts, joined by their sums."""
    batch, heads, count, size = query.shape
    shared, width = prompt[0].shape[1], own[0].shape[2]
    share, window = heads // shared, count // width
    folded = query.reshape(batch, shared, share * count, size)
    ours, ours_lse = cpu.attend(folded, *prompt, seen.prompts, scaling)
    apart = query.view(batch, shared, share, width, window, size).transpose(2, 3)  # (B, h, K, H / h, W, D)
    to_come = seen.own
    if to_come is not None and to_come.shape[:3] != (1, 1, 1):
        to_come = to_come[:, None, :, None].expand(batch, shared, width, share, window, -1)
        to_come = to_come.reshape(batch, shared * width, share * window, -1)
    mine, mine_lse = cpu.attend(
        apart.reshape(batch, shared * width, share * window, size),
        own[0].flatten(1, 2),
        own[1].flatten(1, 2),
        to_come,
        scaling,
    )
    ours, ours_lse = (part.view(batch, shared, share, width, window, -1).transpose(2, 3) for part in (ours, ours_lse))
    mine, mine_lse = (part.view(batch, shared, width, share, window, -1) for part in (mine, mine_lse))
    out = torch.lerp(mine, ours, (ours_lse - mine_lse).sigmoid().to(mine.dtype))
    return out.permute(0, 2, 4, 1, 3, 5).reshape(batch, count, heads, size)


def _at_once(
    query: Tensor, prompt: tuple[Tensor, Tensor], own: tuple[Tensor, Tensor], scaling: float, seen: Seen
) -> Tensor:
    """Compute :func:`attend_rollouts` by one softmax over all keys: a dozen kernels on a GPU, half of the parts'."""
    batch, heads, count, size = query.shape
    shared, width = prompt[0].shape[1], own[0].shape[2]
    share, window = heads // shared, count // width
    folded = query.reshape(batch, shared, share * count, size)
    grid = batch, shared, share, width, window
    apart = query.reshape((*grid, size)).transpose(2, 3).reshape(batch, shared * width, share * window, size)
    key, value = (part.flatten(1, 2) for part in own)
    scores = _products(folded, prompt[0]).view(*grid, -1)  # (B, h, H / h, K, W, P)
    mine = _products(apart, key).view(batch, shared, width, share, window, -1).transpose(2, 3)
    both = torch.cat((scores, mine), -1)
    bias = seen.both(scores.shape[-1], mine.shape[-1])
    weights = (both * scaling if bias is None else torch.add(bias, both, alpha=scaling)).softmax(-1)
    first, last = weights.to(value.dtype).split((scores.shape[-1], mine.shape[-1]), -1)
    out = (first.flatten(2, 4) @ prompt[1]).view((*grid, size))
    rest = last.transpose(2, 3).reshape(batch, shared * width, share * window, -1) @ value
    out = out + rest.view(batch, shared, width, share, window, size).transpose(2, 3)
    return out.permute(0, 3, 4, 1, 2, 5).reshape(batch, count, heads, size)


def _products(query: Tensor, key: Tensor) -> Tensor:
    """Multiply (B, h, Q, D) by (B, h, T, D), halves with sums and result in float32: (B, h, Q, T).

    Qwen2's keys have biases that make products of some 50,000: float16 overflows, and bfloat16 has steps of 256 there.
    """
    if query.itemsize >= 4:
        return query @ key.transpose(-1, -2)
    if query.device.type != "cuda":
        return query.float() @ key.float().transpose(-1, -2)
    flat = torch.bmm(query.flatten(0, 1), key.flatten(0, 1).transpose(-1, -2), out_dtype=torch.float32)
    return flat.view(*query.shape[:-1], -1)
