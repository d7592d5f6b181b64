"""Key-value cache of rollouts that share the one copy of their prompt."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicLayer

from swirl_lightning.engine.attention import Seen, attend_rollouts, attention_dtype

KEYS_AT_ONCE = 8
"""Prompts and rollouts are padded to multiples of this on GPUs."""


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
        batch, _, length, _ = layers[0].values.shape
        more = 0
        if layers[0].values.device.type == "cuda":  # whose fast kernels want rows of whole 16 bytes
            more, room = -length % KEYS_AT_ONCE, room + -room % KEYS_AT_ONCE
        if more:
            mask = mask if mask is not None else layers[0].values.new_ones(batch, length, dtype=torch.long)
            mask = nn.functional.pad(mask, (more, 0))
        self._seen = Seen(None if mask is None else mask[:, None, None], attention_dtype(layers[0].values))
        super().__init__(layers=[_RolloutLayer(layer, self._seen, width, room, step, more) for layer in layers])
        first: Any = self.layers[0]
        first.leads = True

    def keep(self, prompts: Tensor, places: Tensor) -> None:
        """Keep the prompts with indices (b,), and of each of them the rollouts with indices (b, k)."""
        self._seen.keep(prompts)
        layers: list[Any] = self.layers
        for layer in layers:
            layer.keep(prompts, places)


class _RolloutLayer(DynamicLayer):
    """Layer whose ``keys`` and ``values`` are the prompts', (B, h, P, D); those of the rollouts are in buffers.

    Attributes:
        leads: it is the first of a pass.
    """

    def __init__(self, prompts: Any, seen: Seen, width: int, room: int, step: Tensor | None, more: int) -> None:
        super().__init__()
        self.is_initialized, self.leads, self._seen = True, False, seen
        dtype = attention_dtype(prompts.values)
        self.keys, self.values = prompts.keys.to(dtype), prompts.values.to(dtype)
        if more:
            self.keys, self.values = (nn.functional.pad(part, (0, 0, more, 0)) for part in (self.keys, self.values))
            prompts.keys = prompts.values = None  # both would be held until the last layer has been copied
        batch, heads, _, size = self.values.shape
        make = self.values.new_empty if step is None else self.values.new_zeros
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
        if self.leads:
            self._seen.begin(None if self._step is None else self._up_to(self._step))
        return self, self

    def _up_to(self, step: Tensor) -> Tensor:
        """Return which tokens there are at a step, (1, 1, 1, T)."""
        return (torch.arange(self._own[0].shape[3], device=step.device) <= step)[None, None, None]

    def attend(self, query: Tensor, scaling: float) -> Tensor:
        """Attend with queries (B, H, K, D) to the prompts and the rollouts; returns (B, K, H, D)."""
        prompt: Any = self.keys, self.values
        key, value = self._own if self._step is not None else (own[:, :, :, : self._steps] for own in self._own)
        return attend_rollouts(query.to(prompt[1].dtype), prompt, (key, value), scaling, self._seen)

    def keep(self, prompts: Tensor, places: Tensor) -> None:
        """Keep some prompts and rollouts, as :meth:`RolloutCache.keep`."""
        self.batch_select_indices(prompts)
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
        self._seen = Seen(None if mask is None else mask[:, None, None], attention_dtype(layers[0].values))
        self.width, self._window = 1, _Window()
        super().__init__(layers=[_BranchLayer(layer, self._seen, room, self._window) for layer in layers])

    def split(self, prompts: Tensor, parents: Tensor) -> None:
        """Keep the prompts with indices (b,), and make branches of each, copies of those with indices (b, k)."""
        self.width, layers = parents.shape[1], list[Any](self.layers)
        self._seen.keep(prompts)
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
        self._seen.begin(places <= positions[..., None])  # (B, K, W, T)


class _Window:
    """Places of the tokens of a pass, for all layers."""

    def __init__(self) -> None:
        self.positions, self.used = torch.empty(0), 0


class _BranchLayer(DynamicLayer):
    """Layer whose ``keys`` and ``values`` are the prompts', (B, h, P, D); those of the branches are in buffers."""

    def __init__(self, prompts: Any, seen: Seen, room: int, window: _Window) -> None:
        super().__init__()
        self.is_initialized = True
        dtype, self._seen = attention_dtype(prompts.values), seen
        self.keys, self.values = prompts.keys.to(dtype), prompts.values.to(dtype)
        batch, heads, _, size = self.values.shape
        self._own = [self.values.new_zeros(batch, heads, 1, room, size) for _ in range(2)]
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
        return attend_rollouts(query.to(prompt[1].dtype), prompt, (key, value), scaling, self._seen)

    def split(self, prompts: Tensor, parents: Tensor) -> None:
        """Make branches, as :meth:`BranchCache.split`."""
        self.batch_select_indices(prompts)
        rows, used = prompts[:, None], self._window.used
        for n, own in enumerate(self._own):
            heads, _, room, size = own.shape[1:]
            new = own.new_zeros(len(prompts), heads, parents.shape[1], room, size)
            new[:, :, :, :used] = own[:, :, :, :used].transpose(1, 2)[rows, parents].transpose(1, 2)
            self._own[n] = new
