"""Rollouts: G completions per prompt, the prompt prefilled once, from the constrained vocabulary."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from swirl_lightning.engine.budget import Group, TokenBudget
from swirl_lightning.engine.completions import Completions
from swirl_lightning.engine.decoding import decode
from swirl_lightning.engine.drawing import SamplingConfig
from swirl_lightning.engine.grammar import Grammar, TokenIds
from swirl_lightning.engine.vocabulary import VocabularySlice


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
        noise: (B * G, >= grammar.max_length) from :func:`uniforms`; G follows from its shape.
        config: temperature and truncation.
        budget: of the rollouts that are under way at one time.
        shared_attention: rollouts of a prompt share its keys and values, which needs
            :func:`install`; False gives each a copy.
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
        return decode(trunk, vocabulary, grammar, shared, member, noise[rows], config, shared_attention, cuda_graphs)

    done = (budget or TokenBudget()).run(groups, run)
    length = max(part.ids.shape[1] for _, part in done)
    order = torch.tensor([row for rows, _ in done for row in rows]).argsort().to(noise.device)
    ids, mask = (
        torch.cat([nn.functional.pad(part[field], (0, length - part[field].shape[1])) for _, part in done])[order]
        for field in range(2)
    )
    return Completions(ids, mask)
