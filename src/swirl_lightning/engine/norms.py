"""Norms by the root mean square as one kernel on GPUs, where those of transformers take eight."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

Norm = Callable[[Any, Tensor, float], Tensor]


def fuse_norms(model: nn.Module) -> int:
    """Have a model's norms run torch's fused kernel on GPUs.

    What a norm computes is found by a trial, for it goes by no name: some scale by 1 plus the weight, some round before
    they scale. One that computes something else is left alone.

    Returns:
        Number of norms that were changed.
    """
    found = 0
    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm") and isinstance(getattr(module, "weight", None), Tensor):
            eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
            if isinstance(eps, float) and (norm := _same(module, eps)) is not None:
                module.forward = partial(_forward, module, norm, eps)
                found += 1
    return found


def _forward(module: Any, norm: Norm, eps: float, *args: Any, **kwargs: Any) -> Any:
    if kwargs or len(args) != 1 or args[0].device.type == "cpu":  # a gate, or no kernel of its own there
        return type(module).forward(module, *args, **kwargs)
    return norm(module, *args, eps)


def _round_then_scale(module: Any, x: Tensor, eps: float) -> Tensor:
    """Compute as Llama and Qwen do."""
    return module.weight * nn.functional.rms_norm(x.float(), x.shape[-1:], None, eps).to(x.dtype)


def _scale_by_one_more(module: Any, x: Tensor, eps: float) -> Tensor:
    """Compute as Gemma does: all of it in float32."""
    return nn.functional.rms_norm(x.float(), x.shape[-1:], 1 + module.weight.float(), eps).to(x.dtype)


@torch.no_grad()
def _same(module: Any, eps: float) -> Norm | None:
    """Return what computes the same as a norm on a few numbers; None if nothing does."""
    weight = module.weight
    if weight.is_meta or weight.dim() != 1:
        return None
    x = torch.arange(4 * len(weight), device=weight.device).view(4, -1).mul(0.7).sin().to(weight.dtype)
    try:
        expected = type(module).forward(module, x)
    except TypeError:  # it takes more than what it normalises
        return None
    for norm in (_round_then_scale, _scale_by_one_more):
        got, near = norm(module, x, eps), max(1e-5, 2 * torch.finfo(x.dtype).eps)
        if got.dtype == expected.dtype and torch.allclose(got, expected, rtol=near, atol=1e-6):
            return norm
    return None
