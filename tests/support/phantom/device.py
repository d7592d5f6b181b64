"""A CUDA device that is not there: what runs on ``cuda:0`` is run on the CPU, and mixing devices raises as CUDA would.

A device is a tag on a storage, so that views, parameters and what autograd saves share it. A function mode answers
what Python asks (``.device``, ``.to``, ``with torch.device("cuda")``), and a dispatch mode looks at every aten call,
those of the backward pass included. Not covered: numbers (the kernels are the CPU's), memory, streams, autocast, NCCL,
threads.
"""

from __future__ import annotations

import os
import sys
import types
import weakref
from collections import Counter
from collections.abc import Iterable, Iterator, Set
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
import torch.utils.checkpoint
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import _device as default_device
from torch.utils._python_dispatch import TorchDispatchMode

from support.phantom.graphs import Recording, recording_api, tensors

CUDA, CPU = torch.device("cuda", 0), torch.device("cpu")
COPIES = {"copy_", "_to_copy", "_copy_from", "copy", "set_", "_foreach_copy_"}
JOINS = {"cat", "stack"}
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index", "_unsafe_index_put"}
WAITS = {
    "_local_scalar_dense",
    "nonzero",
    "masked_select",
    "_unique2",
    "unique_dim",
    "unique_consecutive",
    "equal",
    "repeat_interleave",
    "bincount",
}
MEMORY = 24 * 2**30


class MixedDevicesError(RuntimeError):
    """Error that CUDA would have raised."""


def _is_cuda(device: Any) -> bool:
    return isinstance(device, int) or torch.device(device).type == "cuda"


class PhantomCuda:
    """Context in which ``cuda:0`` exists, and is the root device of :meth:`trainer`.

    Attributes:
        waits: how often the host waited for the device, copies between them included, by line of the package.
        captures: CUDA graphs that were captured.
        replays: decode steps that were replayed.
        graph: the one that is being captured.
        stream: the current one.
        refuses_waits: the mode of `torch.cuda.set_sync_debug_mode`.
        current: the device of `torch.cuda.device`.
        order: streams, and those that they have waited for.
        captured_on: the stream and the current device of each capture.
        tags: names of the memory that is on the device.
    """

    def __init__(self) -> None:
        self.waits: Counter[str] = Counter()
        self.captures = self.replays = 0
        self.graph: Recording | None = None
        self.stream: Any = None
        self.refuses_waits: Any = 0
        self.current: Any = None
        self.order: list[tuple[Any, Any]] = []
        self.captured_on: list[tuple[Any, Any]] = []
        self.target: torch.device | None = None  # of what is being made, where a device was asked for
        self.tags: dict[int | None, Any] = {}

    # ---- tags ------------------------------------------------------------------------------------
    def _key(self, tensor: Tensor) -> int | None:
        try:
            return tensor.untyped_storage()._cdata
        except (NotImplementedError, RuntimeError):  # without storage
            return None

    def has(self, tensor: Tensor) -> bool:
        """Tell whether a tensor is on the device."""
        return self._key(tensor) in self.tags

    def keys(self, found: Iterable[Tensor]) -> set[int | None]:
        """Return what names the memory of each tensor."""
        return {self._key(t) for t in found}

    def mark(self, tree: Any, known: Set[int | None] = frozenset()) -> None:
        """Put the CPU tensors of a tree there, without those whose memory is ``known`` (of `keys`)."""
        for tensor in tensors(tree):
            if tensor.device.type == "cpu" and (key := self._key(tensor)) not in known and key not in self.tags:
                storage = tensor.untyped_storage()
                self.tags[storage._cdata] = weakref.finalize(storage, self.tags.pop, storage._cdata, None)

    @contextmanager
    def making(self, device: torch.device) -> Iterator[None]:
        """Put all that is made within on ``device``, whatever it is made from."""
        before, self.target = self.target, device
        try:
            yield
        finally:
            self.target = before

    # ---- what is said ----------------------------------------------------------------------------
    def where(self) -> str:
        """The line of the package that is being run."""
        frame: Any = sys._getframe(1)
        while frame is not None:
            name = str(frame.f_globals.get("__name__"))
            if name.startswith("swirl_lightning"):
                return f"{name}:{frame.f_lineno}"
            frame = frame.f_back
        return "elsewhere"

    def wait(self, reason: str) -> None:
        """The host waits for the device: counted, and refused while a graph is captured."""
        if self.refuses_waits == "error":
            raise RuntimeError(f"called a synchronizing CUDA operation: {reason} at {self.where()}")
        if self.graph is not None:
            raise RuntimeError(f"operation not permitted when stream is capturing: {reason} at {self.where()}")
        self.waits[f"{self.where()} {reason}"] += 1

    def refuse(self, message: str) -> None:
        """Raise what CUDA would, with the place."""
        raise MixedDevicesError(f"{message}, at {self.where()}")

    # ---- entering --------------------------------------------------------------------------------
    def __enter__(self) -> PhantomCuda:
        self._stack = ExitStack()
        enter = self._stack.enter_context
        enter(patch.dict(os.environ, HF_DEACTIVATE_ASYNC_LOAD="1"))  # modes live in one thread
        for name, value in (_cuda_api() | recording_api(self)).items():
            enter(patch.object(torch.cuda, name, value))
        functions = enter(_Functions(self))
        run_backward = torch.autograd._engine_run_backward

        def backward(*args: Any, **kwargs: Any) -> Any:
            with functions:  # handling `backward()` has taken the mode off, and recomputed code asks for devices, too
                return run_backward(*args, **kwargs)

        enter(patch.object(torch.autograd, "_engine_run_backward", backward))
        compared = {"default": lambda t: {"shape": t.shape, "dtype": t.dtype}}  # asked with and without the mode
        enter(patch.dict(torch.utils.checkpoint._allowed_determinism_checks_to_fns, compared))
        enter(_Dispatch(self))
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.close()

    def trainer(self) -> dict[str, Any]:
        """Options of a Lightning Trainer whose root device this is."""

        class Accelerator(CPUAccelerator):
            def setup_device(self, device: torch.device) -> None: ...

        return {"strategy": SingleDeviceStrategy(device=CUDA, accelerator=Accelerator()), "accelerator": "auto"}


def _cuda_api() -> dict[str, Any]:
    properties = types.SimpleNamespace(total_memory=MEMORY, name="Phantom", major=9, minor=0, multi_processor_count=132)
    return {
        "_lazy_init": lambda: None,
        "current_device": lambda: 0,
        "device_count": lambda: 1,
        "set_device": lambda *_: None,
        "synchronize": lambda *_: None,
        "empty_cache": lambda: None,
        "memory_allocated": lambda *_: 0,
        "memory_reserved": lambda *_: 0,
        "max_memory_allocated": lambda *_: 0,
        "reset_peak_memory_stats": lambda *_: None,
        "mem_get_info": lambda *_: (MEMORY, MEMORY),
        "get_rng_state": lambda *_: torch.get_rng_state(),
        "get_rng_state_all": lambda: [torch.get_rng_state()],
        "set_rng_state": lambda *_: None,
        "set_rng_state_all": lambda *_: None,
        "get_device_properties": lambda *_: properties,
        "get_device_capability": lambda *_: (9, 0),
    }


class _Functions(TorchFunctionMode):
    """Functions that Python calls on tensors."""

    def __init__(self, gpu: PhantomCuda) -> None:
        super().__init__()
        self.gpu = gpu
        asked: Any = Tensor
        self._answers = {
            asked.device.__get__: lambda t: CUDA if gpu.has(t) else t.device,
            asked.is_cuda.__get__: lambda t: gpu.has(t) or t.is_cuda,
            asked.is_cpu.__get__: lambda t: not gpu.has(t) and t.is_cpu,
            asked.get_device: lambda t: 0 if gpu.has(t) else -1,
            asked.pin_memory: lambda t: t,
            asked.cpu: lambda t: self._move(t, CPU),
            asked.cuda: lambda t: self._move(t, CUDA),
        }

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        gpu, kwargs = self.gpu, dict(kwargs or {})
        if func in self._answers:
            return self._answers[func](args[0])
        if func is Tensor.to:
            return self._to(*args, **kwargs)
        if func in (Tensor.numpy, Tensor.__array__) and gpu.has(args[0]):
            raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first")
        if func is Tensor.tolist and gpu.has(args[0]):
            gpu.wait("tolist")
        if func in (torch.as_tensor, torch.asarray) and isinstance(args[0], Tensor):
            device = kwargs.get("device") or default_device.CURRENT_DEVICE
            return self._to(args[0], device=device, dtype=kwargs.get("dtype"))
        if "_for_cpu" in str(func) and any(isinstance(t, Tensor) and gpu.has(t) for t in args):
            # asked for by name; what F.scaled_dot_product_attention chooses by itself would be another kernel on CUDA
            gpu.refuse(f"Could not run '{func}' with arguments from the 'CUDA' backend")
        return self._make(func, args, kwargs)

    def _make(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Call what may take a device: the one it is given, or the one of ``with torch.device(...)``."""
        device = kwargs.get("device")
        if device is None and func in default_device._device_constructors():
            device = default_device.CURRENT_DEVICE
        if device is None or not (_is_cuda(device) or torch.device(device).type == "cpu"):
            return func(*args, **kwargs)
        generator = kwargs.get("generator")
        if _is_cuda(device) and generator is not None and generator.device.type != "cuda":
            self.gpu.refuse(f"Expected a 'cuda' device type for generator but found 'cpu' (torch.{func.__name__})")
        with self.gpu.making(CUDA if _is_cuda(device) else CPU):
            out = func(*args, **{**kwargs, "device": CPU})
        if _is_cuda(device):
            self.gpu.mark(out)
            if func in (torch.tensor, torch.as_tensor, torch.asarray):
                self.gpu.wait(f"{func.__name__} to the device")
        return out

    def _to(self, tensor: Tensor, *rest: Any, copy: bool = False, other: Tensor | None = None, **kwargs: Any) -> Tensor:
        """All forms of ``Tensor.to``."""
        other = rest[0] if rest and isinstance(rest[0], Tensor) else other
        if other is not None:
            rest = (CUDA if self.gpu.has(other) else other.device, other.dtype)
        device, dtype, _, memory_format = torch._C._nn._parse_to(*rest, **kwargs)
        options = {} if memory_format is None else {"memory_format": memory_format}
        options["dtype"] = dtype or tensor.dtype
        if "meta" in (tensor.device.type, None if device is None else device.type):
            return Tensor.to(tensor, CPU if device is not None and _is_cuda(device) else device, **options)
        if device is None or _is_cuda(device) == self.gpu.has(tensor):
            return Tensor.to(tensor, copy=copy, **options)
        return self._move(tensor, device, dtype)

    def _move(self, tensor: Tensor, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
        # through Tensor.to by name: bitsandbytes' parameters have a `to` of their own, which has led here
        if _is_cuda(device) == self.gpu.has(tensor):
            return Tensor.to(tensor, dtype=dtype or tensor.dtype)
        self.gpu.wait(f"to {device.type}")
        with self.gpu.making(CUDA if _is_cuda(device) else CPU):
            return Tensor.to(tensor, dtype=dtype or tensor.dtype, copy=True)


def _wide_product(a: Tensor, b: Tensor, out_dtype: torch.dtype) -> Tensor:
    return torch.matmul(a.to(out_dtype), b.to(out_dtype))


_ON_CPU = {torch.ops.aten.mm.dtype: _wide_product, torch.ops.aten.bmm.dtype: _wide_product}
"""Operations that torch has on CUDA alone -> the same on a CPU."""


class _Dispatch(TorchDispatchMode):
    """Operations that reach aten, those of the backward pass included."""

    def __init__(self, gpu: PhantomCuda) -> None:
        super().__init__()
        self.gpu = gpu

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        gpu, kwargs = self.gpu, kwargs or {}
        name = func._schema.name.split("::")[-1]
        given = tensors(args, kwargs)
        keys = gpu.keys(given)
        on = any(key in gpu.tags for key in keys)  # isdisjoint would go through all that is on the device
        if on:
            self._check(func, name, args, kwargs, given)
            if name in WAITS:
                gpu.wait(name)
        func = _ON_CPU.get(func, func)
        with torch._C.DisableTorchFunction():  # kernels written in Python see the CPU tensors that there are
            out = func(*args, **kwargs)
        if on if gpu.target is None else gpu.target == CUDA:
            gpu.mark(out, keys)
        if gpu.graph is not None and any(gpu.has(t) for t in tensors(given, out)):
            gpu.graph.add(func, args, kwargs, out)
        return out

    def _check(self, func: Any, name: str, args: Any, kwargs: Any, given: list[Tensor]) -> None:
        gpu = self.gpu
        generator = kwargs.get("generator")
        if generator is not None and generator.device.type != "cuda":
            gpu.refuse(f"Expected a 'cuda' device type for generator but found 'cpu' ({func})")
        if name in COPIES:
            if gpu.target is None and not all(gpu.has(t) for t in given):
                gpu.wait(name)
            return
        if name in INDEXING:
            indices = tensors(args[1])
            if not gpu.has(args[0]) and any(gpu.has(t) for t in indices):
                gpu.refuse("indices should be either on cpu or on the same device as the indexed tensor (cpu)")
            if any(not gpu.has(t) or t.dtype == torch.bool for t in indices):
                gpu.wait(f"{name} by what is not there, or by a mask")
            given = tensors(args[0], args[2:3])
        joins = name in JOINS  # where a tensor of no dimension is no number
        strangers = [tuple(t.shape) for t in given if not gpu.has(t) and (joins or t.dim() > 0)]
        if strangers and any(gpu.has(t) for t in given):
            gpu.refuse(
                "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu! "
                f"({func}: on the CPU are those of shape {strangers})"
            )
