"""Where rollouts stand in the batch of a decode step."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import Cache

from swirl_lightning.engine.kv_cache import RolloutCache
from swirl_lightning.engine.packing import MASK_UNREAD

LEAVING_SHARE = 0.8
"""Finished rows leave the batch once no more than this share of it is left, since leaving copies the cache."""


def side_by_side(members: list[int], device: torch.device) -> Tensor:
    """The rollouts of each prompt, from the prompt of each rollout: (N,) -> (B, K), -1 where a prompt has fewer."""
    rows: list[list[int]] = [[] for _ in range(max(members) + 1)]
    for row, member in enumerate(members):
        rows[member].append(row)
    return nn.utils.rnn.pad_sequence([torch.tensor(r) for r in rows], batch_first=True, padding_value=-1).to(device)


class RolloutLayout:
    """A row of the batch is a prompt, and its K rollouts stand side by side in it.

    A decode step runs K tokens of every row, one of each rollout. So keys and values of a prompt exist once and are
    read once a step for all of its rollouts. Without shared attention K is 1, and every row has a copy.

    Args:
        columns: (B, K) numbers of the rollouts, -1 where there is none.
        prompt_mask: (B, P) of 0 and 1.
        start: (B, 1) position of the first token after each prompt.
        cache: of the prompts and what follows them.
    """

    def __init__(self, columns: Tensor, prompt_mask: Tensor, start: Tensor, cache: Cache) -> None:
        self.columns, self.prompt_mask, self.start, self._cache = columns, prompt_mask, start, cache
        self.width = columns.shape[1]
        self.places = (columns.flatten() >= 0).nonzero()[:, 0]  # (R,)
        self.rows = columns.flatten()[self.places]  # (R,)

    def on_grid(self, token: Tensor) -> Tensor:
        """(R,) -> (B, K); places without a rollout run an id of no consequence."""
        grid = token.new_zeros(self.columns.numel())
        grid[self.places] = token
        return grid.view(self.columns.shape)

    def mask(self, step: int) -> Tensor:
        """What the tokens of a step may see."""
        if isinstance(self._cache, RolloutCache):
            return MASK_UNREAD
        return nn.functional.pad(self.prompt_mask, (0, step + 1), value=1)

    def position(self, step: int) -> Tensor:
        """(B, K) positions of the tokens of a step."""
        return (self.start + step).expand(-1, self.width)

    def without(self, running: Tensor) -> RolloutLayout | None:
        """The layout of those that are still running, the cache with it; None if that would spare too little."""
        grid = torch.zeros_like(self.columns, dtype=torch.bool).flatten().index_put((self.places,), running)
        grid = grid.view(self.columns.shape)
        prompts = grid.any(1).nonzero()[:, 0]
        width = int(grid.sum(1).max())
        if len(prompts) * width > LEAVING_SHARE * self.columns.numel():
            return None
        grid, columns = grid[prompts], self.columns[prompts]
        order = torch.argsort(grid.byte(), dim=1, descending=True, stable=True)[:, :width]  # those that run first
        columns = columns.gather(1, order).where(grid.gather(1, order), -1)
        if isinstance(self._cache, RolloutCache):
            self._cache.keep(prompts, order)
        else:
            self._cache.batch_select_indices(prompts)
        return RolloutLayout(columns, self.prompt_mask[prompts], self.start[prompts], self._cache)
