"""Rollouts without the engine, and a trunk that counts what it runs."""

from __future__ import annotations

import torch

from swirl_lightning.engine.drawing import draw


def plain_rollouts(model, allowed, grammar, prompts, noise, config):
    """No cache, no padding, one row at a time, the whole vocabulary masked at every step."""
    rows, group = [], len(noise) // len(prompts)
    mask = torch.full((model.config.vocab_size,), -torch.inf)
    mask[list(allowed)] = 0
    for n, u in enumerate(noise):
        ids = list(prompts[n // group])
        out = []
        for step in range(grammar.max_length):
            logits = model(torch.tensor([ids])).logits[0, -1] + mask
            token = int(draw(logits[None], u[step : step + 1], config))
            ids.append(token)
            out.append(token)
            if token == grammar.eos:
                break
        rows.append(out)
    return rows


class Counting(torch.nn.Module):
    """A trunk that notes how many tokens it runs."""

    def __init__(self, trunk):
        super().__init__()
        self.trunk, self.tokens = trunk, []

    def forward(self, input_ids, **kwargs):
        self.tokens.append(input_ids.numel())
        return self.trunk(input_ids=input_ids, **kwargs)
