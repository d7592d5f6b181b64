"""Prefill: the one run of each prompt, before anything is decoded."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache

from swirl_lightning.engine.grammar import TokenIds
from swirl_lightning.engine.padding import pad_left, positions


class Prefilled(NamedTuple):
    """B prompts that have been run.

    Attributes:
        cache: their keys and values.
        mask: (B, P) of 0 and 1.
        padded: whether prompts differ in length; without padding no attention mask is needed.
        hidden: (B, 1, H) hidden state of the last token.
        start: (B, 1) position of the first token after each prompt.
    """

    cache: Cache
    mask: Tensor
    padded: bool
    hidden: Tensor
    start: Tensor


def prefill(trunk: nn.Module, prompts: list[TokenIds], device: torch.device) -> Prefilled:
    """Run prompts on the device."""
    ids, mask = pad_left(prompts, device)  # (B, P)
    padded = len({len(prompt) for prompt in prompts}) > 1
    cache: Cache = DynamicCache()
    output = trunk(
        input_ids=ids,
        attention_mask=mask if padded else None,
        position_ids=positions(mask),
        past_key_values=cache,
        use_cache=True,
    )
    start = mask.sum(1, keepdim=True)
    if (deltas := getattr(output, "rope_deltas", None)) is not None:
        start = start + deltas
    return Prefilled(cache, mask, padded, output.last_hidden_state[:, -1:], start)
