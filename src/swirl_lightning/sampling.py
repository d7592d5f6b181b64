"""Rollouts: G completions per prompt, the prompt prefilled once, from the constrained vocabulary."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache

from swirl_lightning.backbones.base import Grammar
from swirl_lightning.budget import Group, TokenBudget
from swirl_lightning.cuda_graph import CapturedTrunk
from swirl_lightning.kv_cache import RolloutCache
from swirl_lightning.padding import pad_left, positions
from swirl_lightning.prompts import TokenIds
from swirl_lightning.rollout_layout import RolloutLayout, side_by_side
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


STEPS_BETWEEN_LEAVING = 4
"""How often finished rows are looked for."""

GREEDY = SamplingConfig(temperature=0.0, top_p=1.0)


def draw(logits: Tensor, uniform: Tensor, config: SamplingConfig) -> Tensor:
    """Inverse-CDF sampling, one uniform a row: (N, V) float32, (N,) -> (N,) indices.

    Only values are sorted, to find the least probability that is kept; tokens that tie with it stay.
    """
    if config.temperature == 0:
        return logits.argmax(-1)
    probs = (logits / config.temperature).softmax(-1)  # (N, V)
    if config.top_k is not None and config.top_k < probs.shape[-1]:
        probs = _keep(probs, probs.topk(config.top_k, dim=-1).values[:, -1:])
        probs = probs / probs.sum(-1, keepdim=True)
    if config.top_p < 1:
        falling = _sorted(probs)
        before = falling.cumsum(-1) - falling
        # the first token that reaches top_p still belongs to the nucleus
        last = (before < config.top_p).sum(-1, keepdim=True) - 1  # (N, 1)
        probs = _keep(probs, falling.gather(-1, last))
    cumulative = probs.cumsum(-1)
    total = cumulative[:, -1:]
    # below the total whatever rounding does, so that the place is one of a token with probability
    target = torch.minimum(uniform[:, None] * total, total.nextafter(torch.zeros_like(total)))
    return torch.searchsorted(cumulative, target, right=True)[:, 0]


def _keep(probs: Tensor, least: Tensor) -> Tensor:
    return probs.masked_fill(probs < least, 0)


def _sorted(probs: Tensor) -> Tensor:
    """Each row in falling order."""
    if probs.device.type == "cpu":  # NumPy's vectorised sort is some fifty times faster than torch's here
        return torch.from_numpy(np.sort(probs.numpy(), axis=-1)).flip(-1)
    return probs.sort(dim=-1, descending=True).values


@torch.no_grad()
def sample(
    trunk: nn.Module,
    vocabulary: VocabularySlice,
    grammar: Grammar,
    prompts: Sequence[TokenIds],
    noise: Tensor,
    config: SamplingConfig,
    budget: TokenBudget | None = None,
    shared_attention: bool = True,
    cuda_graphs: bool = False,
) -> Completions:
    """Draw completions after prompts.

    Args:
        trunk: maps ids to ``last_hidden_state``; the adapter in use is the caller's choice.
        vocabulary: the head cut to ``grammar.allowed``.
        grammar: what a completion is.
        prompts: B prompts as ids, of any length.
        noise: (B * G, >= grammar.max_length) from :func:`swirl_lightning.noise.uniforms`; G follows from its shape.
        config: temperature and truncation.
        budget: of the rollouts that are under way at one time.
        shared_attention: rollouts of a prompt share its keys and values, which needs
            :func:`swirl_lightning.attention.install`; False gives each a copy.
        cuda_graphs: decode steps read and write the same memory each time, and on CUDA devices are replayed; needs
            ``shared_attention``, and a trunk that does not look at values.

    Returns:
        Completions (B * G, L); rows of one prompt are neighbours. One that reaches ``max_length`` before
        its EOS is left without: only what was sampled is scored.
    """
    size = noise.shape[0] // len(prompts)
    noise = noise.to(vocabulary.weight.device)
    groups = [
        Group(tuple(range(n * size, n * size + size)), len(prompt) + grammar.max_length)
        for n, prompt in enumerate(prompts)
    ]

    def run(batch: list[Group], several: bool) -> Completions:
        rows = [row for group in batch for row in group.rows]
        member = [number for number, group in enumerate(batch) for _ in group.rows]
        shared = [prompts[group.rows[0] // size] for group in batch]
        return _rollouts(trunk, vocabulary, grammar, shared, member, noise[rows], config, shared_attention, cuda_graphs)

    done = (budget or TokenBudget()).run(groups, run)
    length = max(part.ids.shape[1] for _, part in done)
    order = torch.tensor([row for rows, _ in done for row in rows]).argsort().to(noise.device)
    ids, mask = (
        torch.cat([nn.functional.pad(part[field], (0, length - part[field].shape[1])) for _, part in done])[order]
        for field in range(2)
    )
    return Completions(ids, mask)


def _rollouts(
    trunk: nn.Module,
    vocabulary: VocabularySlice,
    grammar: Grammar,
    prompts: list[TokenIds],
    members: list[int],
    noise: Tensor,
    config: SamplingConfig,
    shared_attention: bool,
    cuda_graphs: bool,
) -> Completions:
    """One micro-batch: row n goes on from prompt ``members[n]``, which is run once."""
    device, total, longest = noise.device, noise.shape[0], grammar.max_length
    ids, mask = pad_left(prompts, device)  # (B, P)
    padded = len({len(prompt) for prompt in prompts}) > 1  # without padding no attention mask is needed
    columns = side_by_side(members, device)
    cache: Cache = DynamicCache()
    hidden = trunk(
        input_ids=ids,
        attention_mask=mask if padded else None,
        position_ids=positions(mask),
        past_key_values=cache,
        use_cache=True,
    ).last_hidden_state[:, -1:]  # (B, 1, H)
    clock = torch.zeros(1, dtype=torch.long, device=device) if cuda_graphs else None
    if shared_attention:
        cache = RolloutCache(cache, mask if padded else None, columns.shape[1], longest, clock)
    else:
        member = torch.tensor(members, device=device)
        cache.batch_select_indices(member)
        hidden, mask, columns = hidden[member], mask[member], torch.arange(total, device=device)[:, None]
    layout = RolloutLayout(columns, mask, cache)
    replayed = CapturedTrunk(trunk) if cuda_graphs and device.type == "cuda" else None
    hidden = hidden.expand(-1, layout.width, -1)

    tokens = torch.zeros(total, longest, dtype=torch.long, device=device)
    alive = torch.zeros(total, longest, dtype=torch.bool, device=device)
    running = torch.ones_like(layout.rows, dtype=torch.bool)
    forced = dict(grammar.forced)
    last_drawn = max(step for step in range(longest) if step not in forced)
    for step in range(longest):
        rows = layout.rows
        if step in forced:
            token = torch.full_like(rows, forced[step])
        else:
            logits = vocabulary.logits(hidden.flatten(0, 1)[layout.places])
            token = vocabulary.ids[draw(logits, noise[rows, step], config)]
        tokens[rows, step] = token.where(running, token.new_zeros(()))
        alive[rows, step] = running
        if grammar.eos is not None:
            running = running & (token != grammar.eos)
            if step % STEPS_BETWEEN_LEAVING == 0:  # looking at the device's values waits for the device
                if not running.any():
                    break
                if (smaller := layout.without(running)) is not None:
                    kept = torch.isin(rows, smaller.rows)
                    layout, token, running = smaller, token[kept], running[kept]
        if step >= last_drawn:
            continue  # nothing is drawn any more: the forced tokens that are left need no hidden state
        seen = {"attention_mask": layout.mask(step), "past_key_values": cache, "use_cache": True}
        grid, place = layout.on_grid(token), layout.position(step)
        if replayed is None:
            hidden = trunk(input_ids=grid, position_ids=place, **seen).last_hidden_state  # (B, K, H)
        else:
            hidden = replayed(grid, place, **seen)
        if clock is not None:
            clock += 1
    used = int(alive.any(0).sum())
    return Completions(tokens[:, :used], alive[:, :used])
