"""Places of rollouts in the batch of a decode step."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import Cache

from swirl_lightning.engine.kv_cache import RolloutCache
from swirl_lightning.engine.packing import MASK_UNREAD

LEAVING_SHARE = 0.8
"""Finished rows are dropped once at most this share of the batch is left, since dropping copies the cache."""
LEAVING_SHARE_OF_GRAPHS = 0.5
"""The same where steps are replayed, since dropping also needs another capture."""


def side_by_side(members: list[int], device: torch.device) -> Tensor:
    """List the rollouts of each prompt, (B, K), given each rollout's prompt, (N,); -1 if a prompt has fewer than K."""
    rows: list[list[int]] = [[] for _ in range(max(members) + 1)]
    for row, member in enumerate(members):
        rows[member].append(row)
    return nn.utils.rnn.pad_sequence([torch.tensor(r) for r in rows], batch_first=True, padding_value=-1).to(device)


class RolloutLayout:
    """Batch in which a row is a prompt, and its K rollouts are the columns.

    A decode step runs K tokens of every row, one of each rollout. So keys and values of a prompt exist once, and are
    read once per step for all of its rollouts. Without shared attention K is 1, and every row has a copy.

    Args:
        columns: (B, K) indices of the rollouts, -1 where there is none.
        prompt_mask: (B, P) of 0 and 1.
        start: (B, 1) position of the first token after each prompt.
        cache: keys and values of the prompts and of what follows them.
    """

    def __init__(self, columns: Tensor, prompt_mask: Tensor, start: Tensor, cache: Cache) -> None:
        self.columns, self.prompt_mask, self.start, self._cache = columns, prompt_mask, start, cache
        self.width = columns.shape[1]
        self.places = (columns.flatten() >= 0).nonzero()[:, 0]  # (R,)
        self.rows = columns.flatten()[self.places]  # (R,)

    def on_grid(self, token: Tensor) -> Tensor:
        """Place the tokens (R,) of the rollouts into the batch (B, K); empty places run id 0, which nothing reads."""
        grid = token.new_zeros(self.columns.numel())
        grid[self.places] = token
        return grid.view(self.columns.shape)

    def mask(self, step: int) -> Tensor:
        """Attention mask of a step: (B, P + step + 1), or a placeholder if the cache itself attends."""
        if isinstance(self._cache, RolloutCache):
            return MASK_UNREAD
        return nn.functional.pad(self.prompt_mask, (0, step + 1), value=1)

    def position(self, step: int) -> Tensor:
        """Positions (B, K) of the tokens of a step."""
        return (self.start + step).expand(-1, self.width)

    def without(self, running: Tensor, replayed: bool = False) -> RolloutLayout | None:
        """Drop finished rollouts, and their share of the cache.

        Args:
            running: (R,) bool.
            replayed: a batch of another shape is captured anew.

        Returns:
            The layout of the running rollouts, or None if dropping would save too little.
        """
        grid = torch.zeros_like(self.columns, dtype=torch.bool).flatten().index_put((self.places,), running)
        grid = grid.view(self.columns.shape)
        prompts = grid.any(1).nonzero()[:, 0]
        width = int(grid.sum(1).max())
        if len(prompts) * width > (LEAVING_SHARE_OF_GRAPHS if replayed else LEAVING_SHARE) * self.columns.numel():
            return None
        grid, columns = grid[prompts], self.columns[prompts]
        order = torch.argsort(grid.byte(), dim=1, descending=True, stable=True)[:, :width]  # those that run first
        columns = columns.gather(1, order).where(grid.gather(1, order), -1)
        if isinstance(self._cache, RolloutCache):
            self._cache.keep(prompts, order)
        else:
            self._cache.batch_select_indices(prompts)
        return RolloutLayout(columns, self.prompt_mask[prompts], self.start[prompts], self._cache)
