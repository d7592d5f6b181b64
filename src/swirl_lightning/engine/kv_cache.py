"""Key-value cache of rollouts that share the one copy of their prompt."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

from swirl_lightning.engine.attention import attend_rollouts


def _hidden(mask: Tensor, dtype: torch.dtype) -> Tensor:
    return mask.to(dtype).log()[:, None, None]  # 0 and -inf


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
        hidden = None if mask is None else _hidden(mask, layers[0].values.dtype)
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
        return attend_rollouts(query, prompt, (key, value), scaling, self._hidden, _hidden(~to_come[None], key.dtype))

    def keep(self, prompts: Tensor, places: Tensor) -> None:
        """Keep some prompts and rollouts, as :meth:`RolloutCache.keep`."""
        self.batch_select_indices(prompts)
        self._hidden = None if self._hidden is None else self._hidden[prompts]
        rows = prompts[:, None]
        self._own = [own.transpose(1, 2)[rows, places].transpose(1, 2).contiguous() for own in self._own]
