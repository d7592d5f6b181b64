"""4-bit bases: freezing, dequantised copies of weights, and adapters merged into them."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor, nn
from transformers import PreTrainedModel

from swirl_lightning.engine.cpu import linear

MEMORY_SHARE = 0.25
"""Share of the free memory that dequantised weights may take if ``dequantize_once`` is None."""


def import_bitsandbytes() -> None:
    """Import bitsandbytes without torch's compiler, which takes two seconds.

    It asks for the compiler of kernels that run on devices for which it has none of their own: no CPUs, no NVIDIA GPUs.
    """
    before = os.environ.get("TORCHDYNAMO_DISABLE")
    os.environ["TORCHDYNAMO_DISABLE"] = "1"
    try:
        import bitsandbytes  # noqa: F401
    finally:
        if before is None:
            del os.environ["TORCHDYNAMO_DISABLE"]
        else:
            os.environ["TORCHDYNAMO_DISABLE"] = before


def prepare_quantized(model: PreTrainedModel, dequantize_once: bool | None = False) -> PreTrainedModel:
    """Freeze the base, turn its dropout off, and keep bitsandbytes from repacking it on CPUs with AVX512-BF16.

    With dropout of its own (Emu3's config has 0.1), a policy's log-probabilities in training would not be
    those that it sampled with. On such CPUs an eval-mode forward would repack `Linear4bit` weights in place,
    and later training forwards would use an op without autograd: generate-then-update would lose its
    gradients with no more than a warning.

    Args:
        model: the base as loaded.
        dequantize_once: keeps a copy of each 4-bit weight in the dtype of computation after its first use. None: if
            the copies take at most :data:`MEMORY_SHARE` of the memory that is free on the device at that time.

    Returns:
        The same model.

    Raises:
        ValueError: a layer is 4-bit, and its weights are not.
    """
    import_bitsandbytes()
    from bitsandbytes.nn import Linear4bit, Params4bit

    model.requires_grad_(False)
    layers: list[Any] = [module for module in model.modules() if isinstance(module, Linear4bit)]
    whole = [n for n, m in model.named_modules() if isinstance(m, Linear4bit) and not isinstance(m.weight, Params4bit)]
    if whole:
        raise ValueError(
            f"{whole[0]} is made for 4-bit weights, and its own are whole: the quantization_config beside them says "
            "that they are quantised already, or the layer shares its weights with an embedding (then set quantization "
            "of the backbone to null, or keep_unquantized of a subclass)"
        )
    for layer in layers:
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            layer.support_avx512bf16_for_cpu = False
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in list(vars(module).items()):
            if "dropout" in name and isinstance(value, float):
                setattr(module, name, 0.0)
    if dequantize_once is not False:
        keeps = _Keeps(sum(_bytes(layer) for layer in layers), bool(dequantize_once))
        for layer in layers:
            layer.dense = _Dense(keeps)
            layer.forward = partial(_forward, layer)
    return model


@dataclass
class _Keeps:
    """Choice for all layers of a model, made once for each device: whether their weights are kept dequantised.

    Attributes:
        needed: bytes of all of them.
        always: without a look at the memory.
    """

    needed: int
    always: bool
    chosen: dict[torch.device, bool] = field(default_factory=dict)

    def on(self, device: torch.device) -> bool:
        """Return the choice for a device."""
        if device not in self.chosen:
            self.chosen[device] = self.always or _fits(self.needed, device)
        return self.chosen[device]


@dataclass
class _Dense:
    """Dequantised weight of a layer, (out, in), made at its first use where weights are kept.

    Attributes:
        keeps: tells whether they are.
        weight: the dequantised weight, or None before its first use.
        merged: the weight plus an adapter's product, between :func:`merge` and :func:`unmerge`.
    """

    keeps: _Keeps
    weight: Tensor | None = None
    merged: Tensor | None = None

    def get(self, layer: Any, device: torch.device, dtype: torch.dtype) -> Tensor:
        """Return the weight (out, in) on a device, dequantised at the first call alone."""
        if self.weight is None or self.weight.device != device:
            with torch.inference_mode(False), torch.no_grad():  # it will serve training forwards, too
                self.weight = dequantized(layer).to(dtype)
        return self.weight


def _forward(layer: Any, x: Tensor) -> Tensor:
    """Compute what `Linear4bit` does, (..., in) -> (..., out), with the weight dequantised at the first call alone."""
    dense: _Dense = layer.dense
    if not dense.keeps.on(x.device):
        return type(layer).forward(layer, x)  # the class's own: the instance's is this function
    dtype = layer.compute_dtype or x.dtype
    weight = dense.get(layer, x.device, dtype) if dense.merged is None else dense.merged
    bias = None if layer.bias is None else layer.bias.to(dtype)
    return linear(x.to(dtype), weight, bias).to(x.dtype)


@dataclass(frozen=True)
class Packed:
    """Weight (out, in) of a 4-bit layer on a GPU, which is dequantised for each product."""

    layer: Any

    def times(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """Multiply x (N, in) by it, and add a bias (out,); returns (N, out). Without gradient."""
        from bitsandbytes import matmul_4bit

        out: Tensor = matmul_4bit(x, self.layer.weight, quant_state=self.layer.weight.quant_state, bias=bias)
        return out

    def dense(self, dtype: torch.dtype) -> Tensor:
        """Dequantise it, (out, in)."""
        return dequantized(self.layer).to(dtype)


def weight_of(layer: Any, x: Tensor) -> Tensor | Packed | None:
    """Return the weight (out, in) by which a linear layer multiplies ``x``; None if it must multiply itself."""
    dense = getattr(layer, "dense", None)
    if isinstance(dense, _Dense) and dense.keeps.on(x.device):
        return dense.get(layer, x.device, x.dtype) if layer.compute_dtype in (None, x.dtype) else None
    if getattr(layer.weight, "quant_state", None) is not None:
        return Packed(layer) if x.device.type == "cuda" and layer.compute_dtype == x.dtype else None
    return layer.weight if type(layer) is nn.Linear and layer.weight.dtype == x.dtype else None


def dequantized(layer: Any) -> Tensor:
    """Dequantise the weight of a 4-bit layer, (out, in), in the dtype that it was quantised from."""
    from bitsandbytes.functional import dequantize_4bit

    return dequantize_4bit(layer.weight.data, layer.weight.quant_state)


def mergeable(layer: Any) -> bool:
    """Tell whether :func:`merge` is exact enough for a layer: its weight is kept dequantised on a CPU, in float32.

    There the sum rounds no more than the base's and the adapter's products do.
    """
    dense = getattr(layer, "dense", None)
    if not isinstance(dense, _Dense) or layer.weight.device.type != "cpu":
        return False
    return layer.compute_dtype in (None, torch.float32) and dense.keeps.on(layer.weight.device)


def merge(layer: Any, delta: Tensor) -> None:
    """Add ``delta`` (out, in) to the dequantised weight until :func:`unmerge`; ``delta`` is overwritten."""
    layer.dense.merged = delta.add_(layer.dense.get(layer, layer.weight.device, torch.float32))


def unmerge(layer: Any) -> None:
    """Undo :func:`merge`."""
    layer.dense.merged = None


def dense_bytes(model: nn.Module, device: torch.device) -> int:
    """Count the bytes of the weights that are kept dequantised on a device."""
    kept: list[Any] = [module for module in model.modules() if isinstance(getattr(module, "dense", None), _Dense)]
    return sum(_bytes(layer) for layer in kept if layer.dense.keeps.on(device))


def merged_bytes(model: nn.Module) -> int:
    """Count the bytes of the weights that :func:`merge` copies."""
    return sum(_bytes(layer) for layer in model.modules() if mergeable(layer))


def _fits(needed: int, device: torch.device) -> bool:
    """Tell whether dequantised weights take at most :data:`MEMORY_SHARE` of the free memory."""
    free = _free(device)
    if free is None:
        return False
    if not (fits := needed <= MEMORY_SHARE * free):
        rank_zero_info(
            f"4-bit weights are dequantised at every use: {needed / 2**30:.1f} GiB would be a large part of the "
            f"{free / 2**30:.1f} GiB that are free on {device}; dequantize_once: true keeps them all the same"
        )
    return fits


def _free(device: torch.device) -> int | None:
    """Return the free bytes of a device, those that torch's allocator keeps among them; None where it does not say."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    if device.type != "cpu" or "SC_AVPHYS_PAGES" not in os.sysconf_names:  # macOS does not say
        return None
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _bytes(layer: Any) -> int:
    dtype: torch.dtype = layer.compute_dtype or torch.float32
    return int(layer.in_features * layer.out_features * dtype.itemsize)
