"""The key-value cache of rollouts, in which decode steps write in place."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer


def rollout_cache(room: int) -> Cache:
    """A cache for generation without gradient; ``DynamicCache`` copies all that it holds at every step.

    Args:
        room: tokens to make room for whenever a layer is full.
    """
    return Cache(layer_class_to_replicate=partial(_RoomyLayer, room))  # type: ignore[arg-type]


class _RoomyLayer(DynamicLayer):
    """Keys and values at the front of larger buffers.

    Whoever selects or repeats rows replaces ``keys`` and ``values`` by tensors without room; the next
    step then moves them into new buffers.
    """

    def __init__(self, room: int) -> None:
        super().__init__()
        self._room = room
        self._buffers: tuple[Tensor, Tensor] | None = None
        self._front: Tensor | None = None  # the keys within the buffer

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append keys and values (N, heads, T, D) and return all of them."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.keys, self.values = key_states, value_states  # the prompt: nothing to copy yet
            return key_states, value_states
        assert self.keys is not None
        assert self.values is not None
        start, end = self.keys.shape[2], self.keys.shape[2] + key_states.shape[2]
        if self._buffers is None or self._front is not self.keys or end > self._buffers[0].shape[2]:
            self._buffers = self._roomy(self.keys, end), self._roomy(self.values, end)
        for buffer, new in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[:, :, start:end] = new
        self.keys, self.values = (buffer[:, :, :end] for buffer in self._buffers)
        self._front = self.keys
        return self.keys, self.values

    def _roomy(self, held: Tensor, end: int) -> Tensor:
        rows, heads, length, width = held.shape
        buffer = held.new_empty(rows, heads, max(end, length + self._room), width)
        buffer[:, :, :length] = held
        return buffer
