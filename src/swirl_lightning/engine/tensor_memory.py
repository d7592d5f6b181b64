"""Peak memory of a call, measured by the tensors that it makes."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class TensorMemory(TorchDispatchMode):
    """Counter of the bytes of tensors that are created within it and still live; memory of kernels is not counted."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        given = {tensor.untyped_storage()._cdata for tensor in _tensors([*args, *(kwargs or {}).values()])}
        for tensor in _tensors(out):
            if tensor.device.type != "meta":
                storage = tensor.untyped_storage()
                if storage._cdata not in given and storage._cdata not in self._known:
                    self._add(storage)
        return out

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        self._known.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._drop, key, size)

    def _drop(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


def _tensors(value: Any) -> Iterator[Tensor]:
    """Yield the tensors of an operator's arguments or results; torch's own walk of any structure takes longer."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from _tensors(each)


class PeakMemory:
    """Bytes that tensors made within it hold, now and at their peak: by the allocator on CUDA, by tensors elsewhere."""

    def __init__(self, device: torch.device) -> None:
        self._device = device if device.type == "cuda" else None
        self._tensors, self._before = TensorMemory(), 0

    def __enter__(self) -> PeakMemory:
        if self._device is None:
            self._tensors.__enter__()
        else:
            torch.cuda.reset_peak_memory_stats(self._device)
            self._before = torch.cuda.memory_allocated(self._device)
        return self

    def __exit__(self, *exception: Any) -> None:
        if self._device is None:
            self._tensors.__exit__(*exception)

    @property
    def now(self) -> int:
        """Bytes that live."""
        if self._device is None:
            return self._tensors.now
        return int(torch.cuda.memory_allocated(self._device) - self._before)

    @property
    def peak(self) -> int:
        """The most bytes that lived at one time."""
        if self._device is None:
            return self._tensors.peak
        return int(torch.cuda.max_memory_allocated(self._device) - self._before)


def peak_of(run: Callable[[], Any], device: torch.device) -> int:
    """Measure the bytes that ``run()`` adds at its peak."""
    with PeakMemory(device) as memory:
        run()
        return memory.peak
