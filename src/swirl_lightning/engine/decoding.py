"""Decoding of one micro-batch of rollouts, token by token."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from swirl_lightning.engine.completions import Completions
from swirl_lightning.engine.config import EngineConfig
from swirl_lightning.engine.cuda_graph import CapturedTrunk
from swirl_lightning.engine.drawing import SamplingConfig, draw
from swirl_lightning.engine.grammar import Grammar, TokenIds
from swirl_lightning.engine.kv_cache import RolloutCache
from swirl_lightning.engine.prefill import prefill
from swirl_lightning.engine.rollout_layout import RolloutLayout, side_by_side
from swirl_lightning.engine.vocabulary import VocabularySlice

STEPS_BETWEEN_LEAVING = 4
"""Number of decode steps between two checks for finished rows."""


def decode(
    trunk: nn.Module,
    vocabulary: VocabularySlice,
    grammar: Grammar,
    prompts: list[TokenIds],
    members: list[int],
    noise: Tensor,
    sampling: SamplingConfig,
    config: EngineConfig,
) -> Completions:
    """Sample N completions after B prompts, each of which is run once.

    Args:
        trunk: maps ids to ``last_hidden_state``, or to a :class:`swirl_lightning.engine.trunk.TrunkOutput`.
        vocabulary: the head cut to ``grammar.allowed``.
        grammar: what a completion is.
        prompts: B prompts as ids.
        members: N indices of prompts; completion n follows prompt ``members[n]``.
        noise: (N, >= grammar.max_length) uniform numbers, on the device that runs.
        sampling: temperature and truncation.
        config: settings that are fixed for this base.

    Returns:
        Completions (N, L).
    """
    device, total, longest = noise.device, noise.shape[0], grammar.max_length
    columns = side_by_side(members, device)
    cache, mask, padded, hidden, start = prefill(trunk, prompts, device)
    clock = torch.zeros(1, dtype=torch.long, device=device) if config.replays(device, longest) else None
    if config.shared_attention:
        cache = RolloutCache(cache, mask if padded else None, columns.shape[1], longest, clock)
    else:
        member = torch.tensor(members, device=device)
        cache.batch_select_indices(member)
        hidden, mask, start = hidden[member], mask[member], start[member]
        columns = torch.arange(total, device=device)[:, None]
    layout = RolloutLayout(columns, mask, start, cache)
    replayed = CapturedTrunk(trunk) if clock is not None and device.type == "cuda" else None
    hidden = hidden.expand(-1, layout.width, -1)

    tokens = torch.zeros(total, longest, dtype=torch.long, device=device)
    alive = torch.zeros(total, longest, dtype=torch.bool, device=device)
    running = torch.ones_like(layout.rows, dtype=torch.bool)
    forced = dict(grammar.forced)
    for step in range(longest):
        rows = layout.rows
        if step in forced:
            token = torch.full_like(rows, forced[step])
        else:
            logits = vocabulary.logits(hidden.flatten(0, 1)[layout.places])
            token = vocabulary.ids[draw(logits, noise[rows, step], sampling)]
        tokens[rows, step] = token.where(running, token.new_zeros(()))
        alive[rows, step] = running
        if grammar.eos is not None:
            running = running & (token != grammar.eos)
            if step % STEPS_BETWEEN_LEAVING == 0:  # looking at the device's values waits for the device
                if not running.any():
                    break
                if (smaller := layout.without(running, replayed is not None)) is not None:
                    kept = torch.isin(rows, smaller.rows)
                    layout, token, running = smaller, token[kept], running[kept]
        if step >= grammar.last_free:
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
