"""Output layer cut to the ids that a grammar allows, and log-probabilities over them alone."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from swirl_lightning.engine.cpu import linear

LOGITS_PER_CHUNK = 1 << 22
"""Number of logits that exist at one time (16 MiB in float32), whatever the tokens and the vocabulary; on CPUs."""
LOGITS_PER_CHUNK_ON_GPUS = 1 << 26
"""The same on GPUs (256 MiB), whose products of fewer rows leave them idle: docs/performance.md."""


def logits_per_chunk(device: torch.device) -> int:
    """Return the number of logits that exist at one time on a device."""
    return LOGITS_PER_CHUNK if device.type == "cpu" else LOGITS_PER_CHUNK_ON_GPUS


class VocabularySlice:
    """Constrained vocabulary of one grammar: the frozen head cut to the allowed rows.

    Sampling, policy, old, reference and reward log-probabilities are all taken over these ids.
    A nearly contiguous set of ids (all text ids) is a view of the head with the few holes masked;
    a small set (8,192 image ids of 264,192) is a copy of its rows.

    Args:
        head: output layer (vocabulary, hidden), frozen.
        allowed: sorted token ids that may be generated.

    Attributes:
        ids: (V,) long, the ids of the slice.
        weight: (V, H), as in the head.
        bias: (V,), or None.
        excluded: (V,) bool, True on ids of the slice that are not allowed; None if there are none.

    Raises:
        ValueError: an id lies outside the head.
    """

    def __init__(self, head: nn.Linear, allowed: Sequence[int]) -> None:
        ids = torch.as_tensor(allowed, dtype=torch.long, device=head.weight.device)
        low, high = int(ids[0]), int(ids[-1]) + 1
        if high > head.weight.shape[0]:
            raise ValueError(f"token id {high - 1} lies outside the head's {head.weight.shape[0]} rows")
        weight, bias = head.weight.detach(), None if head.bias is None else head.bias.detach()
        self.excluded: Tensor | None = None
        self._is_view = high - low <= 2 * len(ids)
        if self._is_view:
            self.ids = torch.arange(low, high, device=ids.device)  # (V,)
            self.weight = weight[low:high]  # (V, H), a view
            self.bias = None if bias is None else bias[low:high]
            if len(ids) < high - low:
                self.excluded = torch.ones(high - low, dtype=torch.bool, device=ids.device)
                self.excluded[ids - low] = False
        else:
            self.ids, self.weight = ids, weight[ids]
            self.bias = None if bias is None else bias[ids]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def _widens(self) -> bool:
        return self.weight.dtype in (torch.bfloat16, torch.float16) and self.weight.device.type != "cuda"

    @cached_property
    def _factor(self) -> Tensor:
        """Right factor of the logits, (V, H): the weight, in float32 where torch has no product that returns it.

        That copy is made once, since every decode step reads it for a few rows.
        """
        return self.weight.float() if self._widens else self.weight

    @property
    def copied_bytes(self) -> int:
        """Bytes that are held beside the head."""
        return (0 if self._is_view else self.weight.nbytes) + (4 * self.weight.numel() if self._widens else 0)

    def logits(self, hidden: Tensor) -> Tensor:
        """Compute float32 logits over the slice: (T, H) -> (T, V); -inf on excluded ids.

        They are not rounded to the type of a half-precision head: rewards within a group may differ by less.
        """
        with torch.autocast(hidden.device.type, enabled=False):
            logits = _product(hidden.to(self.weight.dtype), self._factor)
        if self.bias is not None:
            logits += self.bias
        return logits if self.excluded is None else logits.masked_fill_(self.excluded, -torch.inf)

    def index_of(self, ids: Tensor) -> Tensor:
        """Return the indices of token ids within the slice, (T,) -> (T,).

        Raises:
            ValueError: an id is not allowed.
        """
        index = torch.searchsorted(self.ids, ids).clamp_(max=len(self.ids) - 1)
        wrong = self.ids[index] != ids
        if self.excluded is not None:
            wrong |= self.excluded[index]
        if wrong.any():
            raise ValueError(f"token ids outside the grammar: {ids[wrong].unique().tolist()[:10]}")
        return index

    def log_probs(self, hidden: Tensor, ids: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
        """Compute the log-probability of each id under the constrained distribution, and its entropy.

        Args:
            hidden: (T, H) last hidden states that predict ``ids``.
            ids: (T,) allowed token ids.
            temperature: divides the logits.

        Returns:
            Log-probabilities (T,) and entropies (T,) in nats, float32. Only the first carries gradient, and
            the second is 0 unless gradient is enabled.
        """
        index, entropy = self.index_of(ids), torch.is_grad_enabled()
        out: tuple[Tensor, Tensor] = _SlicedLogProb.apply(hidden, index, self, temperature, entropy)
        return out


class _SlicedLogProb(torch.autograd.Function):
    """Chunked log-softmax through a frozen head.

    The gradient of a token's log-probability is computed while its logits exist; the backward pass scales it.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        index: Tensor,
        vocabulary: VocabularySlice,
        temperature: float,
        with_entropy: bool,
    ) -> Any:
        log_probs, entropies, gradients = [], [], []
        rows = max(1, logits_per_chunk(hidden.device) // len(vocabulary))
        with torch.autocast(hidden.device.type, enabled=False):
            for h, i in zip(hidden.split(rows), index.split(rows), strict=True):
                logits = vocabulary.logits(h).div_(temperature)  # (t, V)
                lse = logits.logsumexp(-1)  # (t,)
                log_probs.append(logits.gather(1, i[:, None])[:, 0] - lse)
                if not with_entropy and not ctx.needs_input_grad[0]:
                    continue
                p = (logits - lse[:, None]).exp_()
                if with_entropy:
                    # entropy = lse - E[logit]; a hole has probability 0, and 0 * -inf must not count
                    entropies.append(lse - logits.nan_to_num_(neginf=0.0).mul_(p).sum(-1))
                if ctx.needs_input_grad[0]:  # d logp / d logits = onehot - p
                    grad = p.neg_().scatter_add_(1, i[:, None], torch.ones_like(p[:, :1])).div_(temperature)
                    gradients.append((grad.to(vocabulary.weight.dtype) @ vocabulary.weight).to(h.dtype))
        ctx.save_for_backward(torch.cat(gradients) if gradients else hidden)
        entropy = _cat(entropies, hidden) if with_entropy else hidden.new_zeros(len(hidden), dtype=torch.float32)
        ctx.mark_non_differentiable(entropy)
        return _cat(log_probs, hidden), entropy

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (gradient,) = ctx.saved_tensors  # (T, H)
        return (gradient * grads[0][:, None]).to(gradient.dtype), None, None, None, None


def _product(hidden: Tensor, weight: Tensor) -> Tensor:
    """Multiply (T, H) by (V, H), accumulate and return in float32: (T, V)."""
    if weight.dtype in (torch.bfloat16, torch.float16):
        return torch.mm(hidden, weight.t(), out_dtype=torch.float32)
    return linear(hidden.to(weight.dtype), weight).float()


def _cat(parts: list[Tensor], like: Tensor) -> Tensor:
    return torch.cat(parts) if parts else like.new_zeros(0, dtype=torch.float32)
