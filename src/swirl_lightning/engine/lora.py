"""A linear layer with a LoRA adapter as products of matrices that add to one result, in place of PEFT's modules.

PEFT runs the base and two small layers, copies the base's result, scales the adapter's and adds the two. Each of these
passes over the activations costs about what the adapter's products do (``python -m perf.lora``). In bfloat16 PEFT also
casts the input to the adapter's float32, in which a GPU multiplies at a tenth of its rate.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from swirl_lightning.engine.cpu import linear
from swirl_lightning.engine.quantization import Packed, weight_of


def fuse(layers: Iterable[Any]) -> None:
    """Have PEFT's LoRA layers compute by :class:`LoRALinear` wherever it serves; elsewhere by PEFT's own forward."""
    for layer in layers:
        layer.forward = partial(_forward, layer)


def cast(layer: Any, name: str, dtype: torch.dtype) -> None:
    """Have a layer multiply by copies of an adapter's weights in ``dtype``, made now, until :func:`uncast`.

    For many products without gradient, in each of which two small weights would be cast otherwise. Adapters of
    embeddings are left alone.
    """
    if name in layer.lora_A:
        layer.lora_cast = tuple(part[name].weight.detach().to(dtype) for part in (layer.lora_A, layer.lora_B))


def uncast(layer: Any) -> None:
    """Undo :func:`cast`."""
    layer.lora_cast = None


class LoRALinear(torch.autograd.Function):
    """``apply(x, weight, bias, a, b, scaling)``: x Wᵀ + bias + scaling (x Aᵀ) Bᵀ, (N, in) -> (N, out).

    The weight (out, in), :class:`Packed` or not, and the bias (out,) or None are frozen. A (r, in) and B (out, r) are
    multiplied in the dtype of x, as under autocast, and get their gradients in their own.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | Packed, bias: Tensor | None, a: Tensor, b: Tensor, scaling: float
    ) -> Tensor:
        """Add the adapter's product to the base's, in place."""
        low = torch.mm(x, a.to(x.dtype).t())
        ctx.save_for_backward(x, a, b, low)
        ctx.weight, ctx.scaling = weight, scaling  # frozen: nothing writes to it between the passes
        out = weight.times(x, bias) if isinstance(weight, Packed) else linear(x, weight, bias)
        return out.addmm_(low, b.to(x.dtype).t(), alpha=scaling)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:
        """Differentiate with respect to x, A and B, those alone that need it."""
        (grad,), (x, a, b, low), weight, scaling = grads, ctx.saved_tensors, ctx.weight, ctx.scaling
        needs_x, _, _, needs_a, needs_b, _ = ctx.needs_input_grad
        wide = grad.float() if grad.dtype == torch.float16 else grad  # in which B, small at first, makes 0 of them
        back = torch.mm(wide, b.to(wide.dtype)).mul_(scaling)  # (N, r)
        grad_x = None
        if needs_x:
            whole = weight.dense(grad.dtype) if isinstance(weight, Packed) else weight
            grad_x = torch.mm(grad, whole).addmm_(back.to(grad.dtype), a.to(grad.dtype))
        grad_a = torch.mm(back.t(), x.to(wide.dtype)).to(a.dtype) if needs_a else None
        grad_b = torch.mm(wide.t(), low.to(wide.dtype)).mul_(scaling).to(b.dtype) if needs_b else None
        return grad_x, None, None, grad_a, grad_b, None


def _forward(layer: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Compute what PEFT's layer does, (..., in) -> (..., out)."""
    base, name = layer.get_base_layer(), layer._active_adapter[0]
    dropout = layer.lora_dropout[name]
    special = layer._disable_adapters or layer.merged or layer.lora_variant or args or kwargs
    drops = isinstance(dropout, nn.Dropout) and dropout.training
    weight = None if special or drops or torch.is_autocast_enabled(x.device.type) else weight_of(base, x)
    if weight is None:
        return type(layer).forward(layer, x, *args, **kwargs)  # the class's own: the instance's is this function
    a, b = getattr(layer, "lora_cast", None) or (layer.lora_A[name].weight, layer.lora_B[name].weight)
    bias = None if base.bias is None else base.bias.to(x.dtype)
    rows = LoRALinear.apply(x.reshape(-1, x.shape[-1]), weight, bias, a, b, layer.scaling[name])
    return rows.view(*x.shape[:-1], -1)
