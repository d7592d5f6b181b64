"""Sampling of one token per row from logits: temperature, top-k, top-p."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from swirl_lightning.engine import cpu
from swirl_lightning.engine.ranges import check_ranges


@dataclass(frozen=True)
class SamplingConfig:
    """Temperature and truncation of sampling.

    Top-p and top-k trim what is *sampled*. Log-probabilities are those of the whole constrained distribution at
    ``temperature``: see :attr:`untrimmed`.

    Attributes:
        temperature: divides the logits; 0 means greedy, and the least beside it is 1e-6.
        top_p: the smallest set of tokens whose probability reaches this is kept.
        top_k: number of tokens kept at most; None keeps all.
    """

    temperature: float = 0.75
    top_p: float = 0.96
    top_k: int | None = None

    def __post_init__(self) -> None:
        check_ranges(
            "model.sampling", vars(self), temperature="[0, inf)", top_p="(0, 1]", top_k="whole [1, inf) or null"
        )
        if 0 < self.temperature < 1e-6:  # no float32 holds the quotient
            raise ValueError(f"model.sampling.temperature must be 0 or at least 1e-06, got {self.temperature}")

    @property
    def untrimmed(self) -> SamplingConfig:
        """The same temperature without top-p and top-k: what is sampled is then what is scored."""
        return replace(self, top_p=1.0, top_k=None)


GREEDY = SamplingConfig(temperature=0.0, top_p=1.0)


def draw(logits: Tensor, uniform: Tensor, config: SamplingConfig) -> Tensor:
    """Sample one index per row by the inverse of the cumulative distribution.

    Args:
        logits: (N, V) float32.
        uniform: (N,) in [0, 1).
        config: temperature and truncation.

    Returns:
        (N,) long, indices below V.
    """
    return draw_several(logits, uniform[:, None], config)[:, 0]


def draw_several(logits: Tensor, uniform: Tensor, config: SamplingConfig) -> Tensor:
    """Sample M indices per row, each by a number of its own.

    Only values are sorted, to find the least probability that is kept; tokens of equal probability stay, too.

    Args:
        logits: (N, V) float32.
        uniform: (N, M) in [0, 1).
        config: temperature and truncation.

    Returns:
        (N, M) long, indices below V, also where logits are NaN: the loss of such rollouts is, and stops the run.
    """
    if config.temperature == 0:
        return logits.argmax(-1, keepdim=True).expand(uniform.shape)
    probs = (logits / config.temperature).softmax(-1)  # (N, V)
    if config.top_k is not None and config.top_k < probs.shape[-1]:
        probs = _keep(probs, probs.topk(config.top_k, dim=-1).values[:, -1:])
        probs = probs / probs.sum(-1, keepdim=True)
    if config.top_p < 1:
        falling = cpu.sort_falling(probs) if probs.device.type == "cpu" else probs.sort(-1, descending=True).values
        before = falling.cumsum(-1) - falling
        # the first token that reaches top_p still belongs to the nucleus
        last = (before < config.top_p).sum(-1, keepdim=True).clamp(min=1) - 1  # (N, 1)
        probs = _keep(probs, falling.gather(-1, last))
    cumulative = probs.cumsum(-1)
    total = cumulative[:, -1:]
    # below the total whatever rounding does, so that the place is one of a token with probability
    target = torch.minimum(uniform * total, total.nextafter(torch.zeros_like(total)))
    return torch.searchsorted(cumulative, target, right=True).clamp(max=logits.shape[-1] - 1)


def _keep(probs: Tensor, least: Tensor) -> Tensor:
    return probs.masked_fill(probs < least, 0)
