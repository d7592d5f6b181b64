"""Decode steps as CUDA graphs: one launch instead of some thirty a layer."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn

from swirl_lightning.engine.out_of_memory import ran_out

_WARM_UP = 2
"""Number of runs before the capture, in which kernels choose their plans and libraries allocate."""
_REFUSED: WeakSet[nn.Module] = WeakSet()
"""Trunks whose step cannot be captured: one attempt and one warning each."""


class CapturedTrunk:
    """Decode step of a trunk, captured at the first call of its shape and replayed from then on.

    All that the step reads besides ids and positions must stay at its address, and running the step twice must
    change nothing: both hold for a :class:`swirl_lightning.engine.kv_cache.RolloutCache` with ``step``. If the step
    cannot be captured (a kernel waits for the device), the trunk runs without graphs from then on, after a warning.

    Args:
        trunk: on a CUDA device, run without gradient.
    """

    def __init__(self, trunk: nn.Module) -> None:
        self._trunk = trunk
        self._graph: torch.cuda.CUDAGraph | None = None
        self._ids = self._positions = self._hidden = torch.empty(0)

    def __call__(self, input_ids: Tensor, position_ids: Tensor, **fixed: Any) -> Tensor:
        """Run the step on ids and positions, (B, K) each; returns (B, K, H), which the next call overwrites.

        Raises:
            torch.OutOfMemoryError: memory runs out in the capture; the next call captures again.
        """
        if self._trunk in _REFUSED:
            return self._run(input_ids, position_ids, fixed)
        if self._graph is None or self._ids.shape != input_ids.shape:
            self._ids, self._positions = input_ids.clone(), position_ids.clone()
            try:
                self._capture(fixed)
            except RuntimeError as error:
                self._graph = None
                if _ran_out(error):  # the caller goes on with fewer rows
                    raise torch.OutOfMemoryError(str(error)) from error
                _REFUSED.add(self._trunk)
                warnings.warn(f"decode steps are not replayed as CUDA graphs: {error}", stacklevel=2)
                return self._run(input_ids, position_ids, fixed)
        self._ids.copy_(input_ids)
        self._positions.copy_(position_ids)
        assert self._graph is not None
        self._graph.replay()
        return self._hidden

    def _capture(self, fixed: dict[str, Any]) -> None:
        device = self._ids.device
        with torch.cuda.device(device):  # the model's need not be the current one
            before, stream = torch.cuda.current_stream(), _stream(device)
            stream.wait_stream(before)
            try:
                with torch.cuda.stream(stream):
                    for _ in range(_WARM_UP - 1):
                        self._run(self._ids, self._positions, fixed)
                    with _no_waiting():
                        self._run(self._ids, self._positions, fixed)
                self._graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(self._graph, stream=stream):
                    self._hidden = self._run(self._ids, self._positions, fixed)
            finally:
                torch.cuda.set_stream(before)  # a capture that fails would leave its own
                before.wait_stream(stream)

    def _run(self, ids: Tensor, positions: Tensor, fixed: dict[str, Any]) -> Tensor:
        hidden: Tensor = self._trunk(input_ids=ids, position_ids=positions, **fixed).last_hidden_state
        return hidden


@cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    """Return the stream of a device's captures: cuBLAS keeps up to 32 MiB for each stream that it has run on."""
    return torch.cuda.Stream(device)


@contextmanager
def _no_waiting() -> Iterator[None]:
    """Raise where the host waits for the device, while no capture has begun: a capture that fails leaves torch unsound.

    ``torch.cuda.empty_cache`` then fails for the rest of the process (pytorch#180395), and so do, before torch 2.13,
    random numbers on the device (pytorch#172390).
    """
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Synchronization debug mode is a prototype")
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


def _ran_out(error: BaseException | None) -> bool:
    """Tell whether memory ran out, be it that the end of the capture failed after it, with an error of its own."""
    while error is not None and not ran_out(error):
        error = error.__context__
    return error is not None
