"""Key-value cache of rollouts that share the one copy of their prompt."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

from swirl_lightning.engine.attention import attend_rollouts


def _hidden(mask: Tensor, dtype: torch.dtype) -> Tensor:
    return mask.to(dtype).log()  # 0 and -inf


class RolloutCache(Cache):
    """Cache for decode steps in which K rollouts of each prompt run one token each, (B, K) ids; without gradient.

    Args:
        prompts: the cache with which the prompts, (B, P) padded on the left, were run.
        mask: (B, P) of 0 and 1; None: no prompt is padded.
        width: K.
        room: number of tokens of the longest rollout.
        step: (1,) long, the index of the present step; then every step reads and writes the same memory and may be
            run twice, as CUDA graphs need. None: each run is the next step.
    """

    def __init__(self, prompts: Cache, mask: Tensor | None, width: int, room: int, step: Tensor | None = None) -> None:
        layers: list[Any] = prompts.layers
        hidden = None if mask is None else _hidden(mask, layers[0].values.dtype)[:, None, None]
        super().__init__(layers=[_RolloutLayer(layer, hidden, width, room, step) for layer in layers])

    def keep(self, prompts: Tensor, places: Tensor) -> None:
        """Keep the prompts with indices (b,), and of each of them the rollouts with indices (b, k)."""
        layers: list[Any] = self.layers
        for layer in layers:
            layer.keep(prompts, places)


class _RolloutLayer(DynamicLayer):
    """Layer whose ``keys`` and ``values`` are the prompts', (B, h, P, D); those of the rollouts are in buffers."""

    def __init__(self, prompts: Any, hidden: Tensor | None, width: int, room: int, step: Tensor | None) -> None:
        super().__init__()
        self.is_initialized = True
        # under autocast rotated keys are float32 beside values that are not
        self.keys, self.values, self._hidden = prompts.keys.to(prompts.values.dtype), prompts.values, hidden
        batch, heads, _, size = prompts.values.shape
        make = prompts.values.new_empty if step is None else prompts.values.new_zeros
        self._own = [make(batch, heads, width, room, size) for _ in range(2)]
        self._step, self._steps = step, 0

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Store one token of each rollout, (B, h, K, D); returns this layer, which attends in place of keys."""
        for own, new in zip(self._own, (key_states, value_states), strict=True):
            if self._step is None:
                own[:, :, :, self._steps] = new
            else:
                own.index_copy_(3, self._step, new.to(own.dtype).unsqueeze(3))
        self._steps += 1
        return self, self

    def attend(self, query: Tensor, scaling: float) -> Tensor:
        """Attend with queries (B, H, K, D) to the prompts and the rollouts; returns (B, K, H, D)."""
        prompt: Any = self.keys, self.values
        query = query.to(prompt[1].dtype)
        if self._step is None:
            key, value = (own[:, :, :, : self._steps] for own in self._own)
            return attend_rollouts(query, prompt, (key, value), scaling, self._hidden)
        key, value = self._own
        to_come = torch.arange(key.shape[3], device=key.device) > self._step
        return attend_rollouts(
            query, prompt, (key, value), scaling, self._hidden, _hidden(~to_come, key.dtype)[None, None, None]
        )

    def keep(self, prompts: Tensor, places: Tensor) -> None:
        """Keep some prompts and rollouts, as :meth:`RolloutCache.keep`."""
        self.batch_select_indices(prompts)
        self._hidden = None if self._hidden is None else self._hidden[prompts]
        rows = prompts[:, None]
        self._own = [own.transpose(1, 2)[rows, places].transpose(1, 2).contiguous() for own in self._own]


class BranchCache(Cache):
    """Cache for passes in which K branches of each prompt run W tokens each, (B, K * W) ids; without gradient.

    A pass writes over what an earlier one has left at its positions and behind them. At first each prompt has one
    branch, without a token.

    Args:
        prompts: the cache with which the prompts, (B, P) padded on the left, were run.
        mask: (B, P) of 0 and 1; None: no prompt is padded.
        room: number of tokens of the longest branch.

    Attributes:
        width: K.
    """

    def __init__(self, prompts: Cache, mask: Tensor | None, room: int) -> None:
        layers: list[Any] = prompts.layers
        hidden = None if mask is None else _hidden(mask, layers[0].values.dtype)[:, None, None]
        self.width, self._window = 1, _Window(layers[0].values.dtype)
        super().__init__(layers=[_BranchLayer(layer, hidden, room, self._window) for layer in layers])

    def split(self, prompts: Tensor, parents: Tensor) -> None:
        """Keep the prompts with indices (b,), and make branches of each, copies of those with indices (b, k)."""
        self.width, layers = parents.shape[1], list[Any](self.layers)
        for layer in layers:
            layer.split(prompts, parents)

    def place(self, positions: Tensor, used: int) -> None:
        """Say where the tokens of the next pass stand.

        Args:
            positions: (B, K, W) long, numbers of the tokens within their branches, below the room.
            used: one more than the largest of them.
        """
        places = torch.arange(used, device=positions.device)
        self._window.positions, self._window.used = positions, used
        self._window.to_come = _hidden(places <= positions[..., None], self._window.dtype)  # (B, K, W, T)


class _Window:
    """Where the tokens of a pass stand, for all layers."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.positions = self.to_come = torch.empty(0)
        self.dtype, self.used = dtype, 0


class _BranchLayer(DynamicLayer):
    """Layer whose ``keys`` and ``values`` are the prompts', (B, h, P, D); those of the branches are in buffers."""

    def __init__(self, prompts: Any, hidden: Tensor | None, room: int, window: _Window) -> None:
        super().__init__()
        self.is_initialized = True
        # under autocast rotated keys are float32 beside values that are not
        self.keys, self.values, self._hidden = prompts.keys.to(prompts.values.dtype), prompts.values, hidden
        batch, heads, _, size = prompts.values.shape
        self._own = [prompts.values.new_zeros(batch, heads, 1, room, size) for _ in range(2)]
        self._window = window

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Store W tokens of each branch, (B, h, K * W, D); returns this layer, which attends in place of keys."""
        positions = self._window.positions
        for own, new in zip(self._own, (key_states, value_states), strict=True):
            batch, heads, width, _, size = own.shape
            index = positions[:, None, :, :, None].expand(-1, heads, -1, -1, size)
            own.scatter_(3, index, new.to(own.dtype).reshape(batch, heads, width, -1, size))
        return self, self

    def attend(self, query: Tensor, scaling: float) -> Tensor:
        """Attend with queries (B, H, K * W, D) to the prompts and the branches; returns (B, K * W, H, D)."""
        prompt: Any = self.keys, self.values
        key, value = (own[:, :, :, : self._window.used] for own in self._own)
        return attend_rollouts(
            query.to(prompt[1].dtype), prompt, (key, value), scaling, self._hidden, self._window.to_come
        )

    def split(self, prompts: Tensor, parents: Tensor) -> None:
        """Make branches, as :meth:`BranchCache.split`."""
        self.batch_select_indices(prompts)
        self._hidden = None if self._hidden is None else self._hidden[prompts]
        rows, used = prompts[:, None], self._window.used
        for n, own in enumerate(self._own):
            heads, _, room, size = own.shape[1:]
            new = own.new_zeros(len(prompts), heads, parents.shape[1], room, size)
            new[:, :, :, :used] = own[:, :, :, :used].transpose(1, 2)[rows, parents].transpose(1, 2)
            self._own[n] = new
