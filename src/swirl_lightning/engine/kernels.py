"""Attention that also gives its log-sum-exp, and its backward pass as a part of a larger softmax.

The kernels are torch's own. A table of what its releases support on which device would be long and soon wrong, so each
is tried once, on a few tokens, against products of matrices, which work everywhere and take memory for all pairs.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from swirl_lightning.engine.out_of_memory import ran_out

_CPU = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_CPU_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
_CUDA = torch.ops.aten._scaled_dot_product_flash_attention
_CUDA_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_backward


class Kernel(NamedTuple):
    """Attention of queries (B, H, Q, D) to keys and values (B, H, T, D).

    Attributes:
        forward: (query, key, value, causal, scaling) -> output (B, H, Q, D) and log-sum-exp (B, H, Q) of the
            scaled products.
        backward: (gradient of the output, query, key, value, output, log-sum-exp, causal, scaling) -> gradients of
            query, key and value. Output and log-sum-exp may be those of a softmax over more keys than these: the
            gradients are then this part's share.
    """

    forward: Callable[[Tensor, Tensor, Tensor, bool, float], tuple[Tensor, Tensor]]
    backward: Callable[..., tuple[Tensor, Tensor, Tensor]]


def _cpu(query: Tensor, key: Tensor, value: Tensor, causal: bool, scaling: float) -> tuple[Tensor, Tensor]:
    out, lse = _CPU(query, key, value, 0.0, causal, scale=scaling)
    return out, lse


def _cpu_backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, lse: Tensor, causal: bool, scaling: float
) -> tuple[Tensor, Tensor, Tensor]:
    parts = map(_whole, (grad, query, key, value, out))  # torch's own of halves is slower, of short sequences by far
    to_query, to_key, to_value = _CPU_BACKWARD(*parts, lse, 0.0, causal, scale=scaling)
    return to_query.to(query.dtype), to_key.to(key.dtype), to_value.to(value.dtype)


def _cuda(query: Tensor, key: Tensor, value: Tensor, causal: bool, scaling: float) -> tuple[Tensor, Tensor]:
    out, lse, *_ = _CUDA(query, key, value, 0.0, causal, False, scale=scaling)
    return out, lse


def _cuda_backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, lse: Tensor, causal: bool, scaling: float
) -> tuple[Tensor, Tensor, Tensor]:
    seed = torch.zeros(2, dtype=torch.uint64, device=query.device)  # of the dropout, which there is none of
    lengths = query.shape[2], key.shape[2]
    found: tuple[Tensor, Tensor, Tensor] = _CUDA_BACKWARD(
        grad, query, key, value, out, lse, None, None, *lengths, 0.0, causal, seed, seed[0], scale=scaling
    )
    return found


def _products(query: Tensor, key: Tensor, value: Tensor, causal: bool, scaling: float) -> tuple[Tensor, Tensor]:
    scores = _scores(query, key, causal, scaling)
    lse = scores.logsumexp(-1)
    return (scores - lse[..., None]).exp().to(value.dtype) @ value, lse


def _products_backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, lse: Tensor, causal: bool, scaling: float
) -> tuple[Tensor, Tensor, Tensor]:
    share = (_scores(query, key, causal, scaling) - lse[..., None]).exp()  # (B, H, Q, T)
    from_value = (grad @ value.transpose(-1, -2)).to(share.dtype)
    of_score = share * (from_value - (grad * out).sum(-1, keepdim=True)) * scaling
    share, of_score = share.to(value.dtype), of_score.to(query.dtype)
    return of_score @ key, of_score.transpose(-1, -2) @ query, share.transpose(-1, -2) @ grad


def _scores(query: Tensor, key: Tensor, causal: bool, scaling: float) -> Tensor:
    """Compute scaled products (B, H, Q, T), of halves in float32, -inf where a key is still to come."""
    scores = _whole(query) @ _whole(key).transpose(-1, -2) * scaling
    if causal:
        to_come = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        scores = scores.masked_fill(to_come, -torch.inf)
    return scores


def _whole(part: Tensor) -> Tensor:
    """Copy halves to float32."""
    return part.float() if part.itemsize < 4 else part


CPU = Kernel(_cpu, _cpu_backward)
CUDA = Kernel(_cuda, _cuda_backward)
PRODUCTS = Kernel(_products, _products_backward)
FLASH = {"cpu": CPU, "cuda": CUDA}
"""Kernels by type of device that never hold all products."""


@cache
def kernel(device: torch.device, dtype: torch.dtype, size: int) -> Kernel:
    """Choose the kernel for a device, a type and a head size: the device's own if it works, else products."""
    if device.type not in FLASH:
        return PRODUCTS
    try:
        if not (error := _error(FLASH[device.type], device, dtype, size)) <= 16 * torch.finfo(dtype).eps:  # or NaN
            raise RuntimeError(f"it is off by {error:.1e}")
    except RuntimeError as error:
        if ran_out(error):
            raise
        reason = str(error).partition("\n")[0]
        warnings.warn(
            f"torch's flash attention cannot be used on {device} with {dtype} and heads of {size} ({reason}): "
            "attention takes longer and more memory",
            stacklevel=2,
        )
        return PRODUCTS
    return FLASH[device.type]


def leave_out_cudnn() -> None:
    """Have ``F.scaled_dot_product_attention`` choose another kernel than cuDNN's, for the process.

    torch prefers cuDNN's on Hopper and Blackwell. With a mask some of its gradients are NaN (pytorch#196678), and it
    makes a plan for each new shape, of which prompts of all lengths have many.
    """
    torch.backends.cuda.enable_cudnn_sdp(False)


@torch.no_grad()
def _error(found: Kernel, device: torch.device, dtype: torch.dtype, size: int) -> float:
    """Return by how much a kernel is off the products, relative to the largest value or 1."""
    gaps: list[Tensor] = []
    with torch.autocast(device.type, enabled=False):
        for causal, queries in ((False, 40), (True, 72)):
            at = torch.arange(2 * 2 * 72 * size, device=device, dtype=torch.float32).view(2, 2, 72, size)
            key, value, query, grad = ((at * step).sin().to(dtype) for step in (0.7, 1.1, 0.9, 1.3))
            given = query[:, :, :queries], key, value
            out, lse = PRODUCTS.forward(*given, causal, 0.2)
            whole = out / 2, lse + 1  # as if there were more keys
            true, got = (
                (*each.forward(*given, causal, 0.2), *each.backward(grad[:, :, :queries], *given, *whole, causal, 0.2))
                for each in (PRODUCTS, found)
            )
            for one, other in zip(true, got, strict=True):
                gaps.append((one.double() - other.double()).abs().max() / one.abs().max().clamp(min=1))
    return float(torch.stack(gaps).max())
