"""CUDA graphs of the phantom device: a capture records aten calls, a replay runs them again on the same memory.

What Python did between the calls is not repeated, so a step that leans on Python's state gives other tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_map

if TYPE_CHECKING:
    from support.phantom.device import PhantomCuda


def tensors(*parts: Any) -> list[Tensor]:
    """The tensors of what aten takes and gives."""
    found: list[Tensor] = []
    for part in parts:
        if isinstance(part, Tensor):
            found.append(part)
        elif isinstance(part, (tuple, list)):
            found.extend(tensors(*part))
        elif isinstance(part, dict):
            found.extend(tensors(*part.values()))
    return found


class Recording:
    """The calls of one graph."""

    def __init__(self, gpu: PhantomCuda) -> None:
        self._gpu = gpu
        self._calls: list[tuple[Any, Any, Any, list[Tensor]]] = []

    def add(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        """Take a call; what it reads of the host (scalars) it will read as it is now."""
        frozen = tree_map(lambda t: t.clone() if isinstance(t, Tensor) and not self._gpu.has(t) else t, (args, kwargs))
        self._calls.append((func, *frozen, tensors(out)))

    @torch.no_grad()
    def replay(self) -> None:
        """Run the calls again; what was given out is overwritten."""
        self._gpu.replays += 1
        with torch._C.DisableTorchFunction(), _disable_current_modes():  # all has been checked
            for func, args, kwargs, out in self._calls:
                for old, new in zip(out, tensors(func(*args, **kwargs)), strict=True):
                    if old.data_ptr() != new.data_ptr():  # else a view, or written in place
                        old.copy_(new)


def recording_api(gpu: PhantomCuda) -> dict[str, Any]:
    """Return the replacements of names of ``torch.cuda``."""

    class Stream:
        def __init__(self, device: Any = None) -> None:
            self.device = device

        def wait_stream(self, other: Any) -> None:
            gpu.order.append((self, other))

    gpu.stream = Stream()

    def set_stream(stream: Any) -> None:
        gpu.stream = stream

    @contextmanager
    def graph(cuda_graph: Recording, stream: Any = None) -> Iterator[None]:
        gpu.captures += 1
        gpu.graph = cuda_graph
        gpu.captured_on.append((stream, gpu.current))
        before = gpu.stream
        set_stream(stream)
        try:
            yield
        finally:
            gpu.graph = None
        set_stream(before)  # after an error torch leaves the stream of the capture

    @contextmanager
    def stream(other: Any) -> Iterator[None]:
        before = gpu.stream
        set_stream(other)
        try:
            yield
        finally:
            set_stream(before)

    @contextmanager
    def device(found: Any) -> Iterator[None]:
        before, gpu.current = gpu.current, found
        try:
            yield
        finally:
            gpu.current = before

    def set_sync_debug_mode(mode: Any) -> None:
        gpu.refuses_waits = mode

    return {
        "Stream": Stream,
        "current_stream": lambda *_: gpu.stream,
        "set_stream": set_stream,
        "stream": stream,
        "device": device,
        "get_sync_debug_mode": lambda: gpu.refuses_waits,
        "set_sync_debug_mode": set_sync_debug_mode,
        "CUDAGraph": lambda: Recording(gpu),
        "graph": graph,
    }
