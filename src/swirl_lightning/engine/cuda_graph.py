"""Decode steps as CUDA graphs: one launch instead of some thirty a layer."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn

_WARM_UP = 2
"""Number of runs before the capture, in which kernels choose their plans and libraries allocate."""


class CapturedTrunk:
    """Decode step of a trunk, captured at the first call of its shape and replayed from then on.

    All that the step reads besides ids and positions must stay at its address, and running the step twice must
    change nothing: both hold for a :class:`swirl_lightning.engine.kv_cache.RolloutCache` with ``step``. If the step
    cannot be captured (a kernel waits for the device), it runs without a graph, and a warning says so.

    Args:
        trunk: on a CUDA device, run without gradient.
    """

    def __init__(self, trunk: nn.Module) -> None:
        self._trunk = trunk
        self._graph: torch.cuda.CUDAGraph | None = None
        self._refused = False
        self._ids = self._positions = self._hidden = torch.empty(0)

    def __call__(self, input_ids: Tensor, position_ids: Tensor, **fixed: Any) -> Tensor:
        """Run the step on ids and positions, (B, K) each; returns (B, K, H), which the next call overwrites.

        Raises:
            torch.OutOfMemoryError: memory runs out in the capture; the next call captures again.
        """
        if self._refused:
            return self._run(input_ids, position_ids, fixed)
        if self._graph is None or self._ids.shape != input_ids.shape:
            self._ids, self._positions = input_ids.clone(), position_ids.clone()
            try:
                self._capture(fixed)
            except torch.OutOfMemoryError:  # a RuntimeError, too: the caller goes on with fewer rows
                self._graph = None
                raise
            except RuntimeError as error:
                self._refused, self._graph = True, None
                warnings.warn(f"decode steps are not replayed as CUDA graphs: {error}", stacklevel=2)
                return self._run(input_ids, position_ids, fixed)
        self._ids.copy_(input_ids)
        self._positions.copy_(position_ids)
        assert self._graph is not None
        self._graph.replay()
        return self._hidden

    def _capture(self, fixed: dict[str, Any]) -> None:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UP):
                self._run(self._ids, self._positions, fixed)
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._hidden = self._run(self._ids, self._positions, fixed)

    def _run(self, ids: Tensor, positions: Tensor, fixed: dict[str, Any]) -> Tensor:
        hidden: Tensor = self._trunk(input_ids=ids, position_ids=positions, **fixed).last_hidden_state
        return hidden
