"""Rollouts: G completions per prompt, the prompt prefilled once, from the constrained vocabulary."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from swirl_lightning.backbones.base import Grammar
from swirl_lightning.prompts import TokenIds
from swirl_lightning.rollouts import Completions
from swirl_lightning.vocabulary import VocabularySlice


@dataclass(frozen=True)
class SamplingConfig:
    """How completions are drawn.

    Top-p and top-k only trim the tail of what is *sampled*. Policy, old and reference
    log-probabilities are those of the untrimmed constrained distribution at ``temperature``, as in TRL.

    Attributes:
        temperature: divides the logits; 0 means greedy.
        top_p: smallest set of tokens whose probability reaches this is kept.
        top_k: number of tokens kept at most; None keeps all.
    """

    temperature: float = 0.75
    top_p: float = 0.96
    top_k: int | None = None

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise ValueError(f"temperature must be >= 0, got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must lie in (0, 1], got {self.top_p}")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k must be >= 1 or null, got {self.top_k}")


GREEDY = SamplingConfig(temperature=0.0, top_p=1.0)


def draw(logits: Tensor, uniform: Tensor, config: SamplingConfig) -> Tensor:
    """Inverse-CDF sampling, one uniform a row: (N, V) float32, (N,) -> (N,) indices.

    Tokens are walked in order of falling probability, so a trimmed tail never moves the rest.
    """
    if config.temperature == 0:
        return logits.argmax(-1)
    probs = (logits / config.temperature).softmax(-1)  # (N, V)
    if config.top_k is not None and config.top_k < probs.shape[-1]:
        probs, order = probs.topk(config.top_k, dim=-1)  # (N, K), falling
        probs = probs / probs.sum(-1, keepdim=True)
    else:
        probs, order = probs.sort(dim=-1, descending=True, stable=True)
    cumulative = probs.cumsum(-1)
    # the first token that reaches top_p still belongs to the nucleus
    kept = (cumulative - probs < config.top_p).sum(-1, keepdim=True)  # (N, 1)
    total = cumulative.gather(-1, kept - 1)
    place = torch.searchsorted(cumulative, uniform[:, None] * total, right=True)
    return order.gather(-1, torch.minimum(place, kept - 1))[:, 0]


@torch.no_grad()
def sample(
    trunk: nn.Module,
    vocabulary: VocabularySlice,
    grammar: Grammar,
    prompts: Sequence[TokenIds],
    noise: Tensor,
    config: SamplingConfig,
) -> Completions:
    """Draw completions after prompts.

    Args:
        trunk: maps ids to ``last_hidden_state``; the adapter in use is the caller's choice.
        vocabulary: the head cut to ``grammar.allowed``.
        grammar: what a completion is.
        prompts: B prompts as ids, of any length.
        noise: (B * G, >= grammar.max_length) from :func:`swirl_lightning.noise.uniforms`; G follows from its shape.
        config: temperature and truncation.

    Returns:
        Completions (B * G, L); rows of one prompt are neighbours. One that reaches ``max_length`` before
        its EOS is left without: only what was sampled is scored.
    """
    device = vocabulary.weight.device
    noise = noise.to(device)
    total, group_size = noise.shape[0], noise.shape[0] // len(prompts)
    ids, mask = pad_left(prompts, device)  # (B, P)
    cache = DynamicCache()
    hidden = trunk(
        input_ids=ids,
        attention_mask=mask,
        position_ids=positions(mask),
        past_key_values=cache,
        use_cache=True,
    ).last_hidden_state[:, -1]  # (B, H)
    cache.batch_repeat_interleave(group_size)
    hidden = hidden.repeat_interleave(group_size, 0)  # (N, H)
    mask = mask.repeat_interleave(group_size, 0)
    position = mask.sum(1, keepdim=True)  # (N, 1)

    tokens = torch.zeros(total, grammar.max_length, dtype=torch.long, device=device)
    alive = torch.zeros(total, grammar.max_length, dtype=torch.bool, device=device)
    running = torch.ones(total, dtype=torch.bool, device=device)
    forced = dict(grammar.forced)
    last_drawn = max(step for step in range(grammar.max_length) if step not in forced)
    for step in range(grammar.max_length):
        if step in forced:
            token = torch.full_like(tokens[:, step], forced[step])
        else:
            token = vocabulary.ids[draw(vocabulary.logits(hidden), noise[:, step], config)]
        tokens[:, step] = token.where(running, token.new_zeros(()))
        alive[:, step] = running
        if grammar.eos is not None:
            running = running & (token != grammar.eos)
            if not running.any():
                break
        if step >= last_drawn:
            continue  # nothing is drawn any more: the forced tokens that are left need no hidden state
        mask = torch.cat([mask, mask.new_ones(total, 1)], 1)
        hidden = trunk(
            input_ids=token[:, None],
            attention_mask=mask,
            position_ids=position + step,
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state[:, -1]
    used = step + 1
    return Completions(tokens[:, :used], alive[:, :used])


def pad_left(rows: Sequence[TokenIds], device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids (B, P) padded with 0 on the left, and their mask (B, P) of 0 and 1."""
    return _pad(rows, "left", device)


def pad_right(rows: Sequence[TokenIds], device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids (B, P) padded with 0 on the right, and their mask (B, P) of 0 and 1."""
    return _pad(rows, "right", device)


def _pad(rows: Sequence[TokenIds], side: str, device: torch.device) -> tuple[Tensor, Tensor]:
    ids = [torch.tensor(row, dtype=torch.long) for row in rows]  # on the CPU: one copy to the device for all
    mask = [torch.ones_like(row) for row in ids]
    padded = (nn.utils.rnn.pad_sequence(part, batch_first=True, padding_side=side) for part in (ids, mask))
    return tuple(part.to(device) for part in padded)  # type: ignore[return-value]


def positions(mask: Tensor) -> Tensor:
    """Position of each token among the unmasked ones: (B, P) -> (B, P); 0 on padding."""
    return (mask.cumsum(1) - 1).clamp_(min=0)
