"""Norms by the root mean square as one kernel on GPUs, where those of transformers take eight."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

Norm = Callable[[Tensor, Tensor, float], Tensor]


def fuse_norms(model: nn.Module) -> int:
    """Have a model's norms run torch's fused kernel on GPUs. Their weights are frozen.

    What a norm computes is found by a trial, for it goes by no name: some scale by 1 plus the weight, some round before
    they scale. One that computes something else is left alone.

    Returns:
        Number of norms that were changed.
    """
    found = 0
    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm") and isinstance(getattr(module, "weight", None), Tensor):
            eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
            if isinstance(eps, float) and (same := _same(module, eps)) is not None:
                norm, scale = same
                # beside the weight, so that it follows the module to its device
                module.register_buffer("fused_scale", scale, persistent=False)
                module.forward = partial(_forward, module, norm, eps)
                found += 1
    return found


def _forward(module: Any, norm: Norm, eps: float, *args: Any, **kwargs: Any) -> Any:
    if kwargs or len(args) != 1 or args[0].device.type == "cpu":  # a gate, or no kernel of its own there
        return type(module).forward(module, *args, **kwargs)
    return norm(module.fused_scale, *args, eps)


def _round_then_scale(scale: Tensor, x: Tensor, eps: float) -> Tensor:
    """Compute as Llama and Qwen do; torch's kernel reads any dtype, computes in float32 and rounds once."""
    return scale * nn.functional.rms_norm(x, x.shape[-1:], None, eps).to(x.dtype)  # under autocast it is float32


def _scale_then_round(scale: Tensor, x: Tensor, eps: float) -> Tensor:
    """Compute as Gemma does: all of it in float32."""
    return nn.functional.rms_norm(x.float(), x.shape[-1:], scale, eps).to(x.dtype)


@torch.no_grad()
def _same(module: Any, eps: float) -> tuple[Norm, Tensor] | None:
    """Return what computes the same as a norm on a few numbers, and the scale for it; None if nothing does."""
    weight = module.weight
    if weight.is_meta or weight.dim() != 1:
        return None
    x = torch.arange(4 * len(weight), device=weight.device).view(4, -1).mul(0.7).sin().to(weight.dtype)
    try:
        expected = type(module).forward(module, x)
    except TypeError:  # it takes more than what it normalises
        return None
    choices: list[tuple[Norm, Tensor]] = [
        (_round_then_scale, weight.detach()),
        (_scale_then_round, 1 + weight.detach().float()),
    ]
    for norm, scale in choices:
        got, near = norm(scale, x, eps), max(1e-5, 2 * torch.finfo(x.dtype).eps)
        if got.dtype == expected.dtype and torch.allclose(got, expected, rtol=near, atol=1e-6):
            return norm, scale
    return None
