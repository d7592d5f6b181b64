"""Perplexity of texts under a causal language model."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch


def perplexity(
    model: str, texts: Sequence[str], device: str | torch.device = "cpu", batch_size: int = 64
) -> float | None:
    """Compute exp of the mean negative log-probability per token, over the tokens of all texts.

    Each text is read on its own after the model's start token, so that its first token counts as well (GPT-2's start
    token is ``<|endoftext|>``). Where the tokenizer has none, the first token of a text is a condition alone. A text
    longer than the model reads is cut there.

    Args:
        model: causal language model, a folder or a hub name; the paper's is ``gpt2``.
        texts: N of them; one that is blank does not count.
        device: of the model.
        batch_size: texts in one forward pass.

    Returns:
        None if no text has a token that counts.

    Raises:
        OSError: the model cannot be loaded.
    """
    tokenizer, network = _load(model, str(device))
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    longest = getattr(network.config, "max_position_embeddings", None) or 1024
    rows = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts if text.strip()]
    rows = [([] if start is None else [start]) + ids for ids in rows]
    rows = sorted((ids[:longest] for ids in rows if len(ids) > 1), key=len)
    if not rows:
        return None
    total, count = 0.0, 0
    for begin in range(0, len(rows), batch_size):
        part = rows[begin : begin + batch_size]
        width = max(map(len, part))
        ids = torch.tensor([row + [0] * (width - len(row)) for row in part], device=device)  # (B, T)
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in part], device=device)
        total += _surprise(network, ids, mask)
        count += sum(len(row) - 1 for row in part)
    return float(torch.exp(torch.tensor(total / count, dtype=torch.float64)))


@torch.no_grad()
def _surprise(network: Any, ids: torch.Tensor, mask: torch.Tensor) -> float:
    """Sum -log p over the tokens of a batch (B, T) but the first of each row, in nats."""
    logits = network(input_ids=ids, attention_mask=mask).logits[:, :-1].float()  # (B, T - 1, V)
    surprise = torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
    return float((surprise.double() * mask[:, 1:]).sum())


@lru_cache(maxsize=1)
def _load(model: str, device: str) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM

    from swirl_lightning.backbones.loading import load_plain

    try:
        return load_plain(model, AutoModelForCausalLM, device)
    except OSError as error:
        reason = next(iter(str(error).splitlines()), "")
        raise OSError(
            f"the language model {model} cannot be loaded ({reason}): give a folder, or a hub name such as gpt2"
        ) from error
