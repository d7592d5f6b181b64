"""Lower bound of a step's time: its matrix products and bytes, over rates measured on this machine.

It counts what no implementation can leave out: each prompt once per group and adapter, the head at judged
tokens and allowed rows alone, 4-bit weights and keys read once per forward pass, and in the update the
gradients of activations and adapters. Dequantisation, softmax, norms and Python are not counted.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch

from perf.common import SPECIALS, Case

NF4_BYTES = 0.5 + 1 / 64  # a weight, and its share of a scale of one byte per 64


class Rates(NamedTuple):
    """Matrix products per second (multiplications and additions), and bytes read or written per second."""

    flops: float
    bytes: float


def measure(device: str, dtype: str, threads: int) -> Rates:
    """Measure the best of a few large products in ``dtype``, and of a few copies of 256 MiB."""
    torch.set_num_threads(threads)
    side = 8192 if device == "cuda" else 2048  # a GPU needs some waves of tiles to be at its rate
    a = torch.randn(side, side, device=device).to(getattr(torch, dtype))
    source = torch.zeros(1 << 26, device=device)
    target = torch.zeros_like(source)
    product = _best(lambda: a @ a, device)
    copy = _best(lambda: target.copy_(source), device)
    return Rates(2 * side**3 / product, 2 * source.nbytes / copy)


def _best(call: Callable[[], object], device: str) -> float:
    """Return the seconds of a call in the fastest of ten series; on a GPU of 20, whose launches then cost nothing."""
    count, times = 20 if device == "cuda" else 1, []
    for _ in range(10):
        began = time.perf_counter()
        for _ in range(count):
            call()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append((time.perf_counter() - began) / count)
    return min(times[1:])  # kernels are chosen, and loaded, in the first


@dataclass(frozen=True)
class Floor:
    """Seconds that each part of a step takes at least, with the base in 4 bits or as ``weight_bytes`` says."""

    case: Case
    rates: Rates
    weight_bytes: float = NF4_BYTES

    def seconds(self) -> dict[str, dict[str, float]]:
        """Compute the seconds by phase and part."""
        c, size = self.case, self.case.group_size
        states = c.codes or c.vocabulary - SPECIALS
        actions = c.vocabulary - c.codes - SPECIALS
        shared = c.before + c.frame
        fwm = {
            "latent action": self._decode(1, c.idm_prompt, c.action, actions),
            "sample": self._decode(size, c.prompt, c.completion, states),
            "reward": self._score(shared, c.completion + c.action, c.action, actions),
            "reference": self._score(c.prompt, c.completion, c.completion, states),
            "policy update": self._score(c.prompt, c.completion, c.completion, states, training=True),
        }
        idm = {
            "sample": self._decode(size, c.idm_prompt, c.action, actions),
            "reward": self._score(shared, c.action + c.completion, c.completion, states),
            "reference": self._score(c.idm_prompt, c.action, c.action, actions),
            "policy update": self._score(c.idm_prompt, c.action, c.action, actions, training=True),
        }
        return {phase: {**parts, "step": sum(parts.values())} for phase, parts in (("fwm", fwm), ("idm", idm))}

    # ---- passes over the batch -------------------------------------------------------------------
    def _decode(self, size: int, prompt: int, length: int, rows: int) -> float:
        """Count prompts once each, then a token at a time for ``size`` members a group."""
        pairs, members = self.case.pairs, self.case.pairs * size
        total = self._time(pairs * prompt, pairs * prompt**2 / 2, pairs * prompt, pairs, rows)
        for step in range(1, length):
            held = pairs * prompt + members * step
            total += self._time(members, members * (prompt + step), held, members, rows)
        return total

    def _score(self, shared: int, own: int, judged: int, rows: int, training: bool = False) -> float:
        """Count the shared prefix once a group, then every member's own tokens."""
        pairs, members = self.case.pairs, self.case.pairs * self.case.group_size
        tokens = pairs * shared + members * own
        attended = pairs * shared**2 / 2 + members * own * (shared + own / 2)
        return self._time(tokens, attended, tokens, members * judged, rows, training)

    def _time(self, tokens: int, attended: float, held: int, judged: int, rows: int, training: bool = False) -> float:
        """Compute the seconds of one pass, and of its backward in training: products or bytes, whichever take longer.

        Args:
            tokens: that run.
            attended: pairs of a query and a key.
            held: tokens whose keys and values are read.
            judged: tokens that reach the head.
            rows: of the head.
            training: count the backward pass, too.
        """
        c = self.case
        heads = c.head_dim * c.heads  # their width, of some families more than hidden
        weights = c.layers * (4 * c.hidden * heads + 3 * c.hidden * c.intermediate)
        adapters = c.layers * c.rank * (4 * (c.hidden + heads) + 3 * (c.hidden + c.intermediate))
        width = torch.finfo(getattr(torch, c.dtype)).bits // 8
        base = 2 * (weights * tokens + c.hidden * rows * judged)
        others = 2 * adapters * tokens + 4 * heads * c.layers * attended
        # backward: a frozen weight passes its gradient on (once more), an adapter or attention has two sides
        flops = 2 * base + 3 * others if training else base + others
        moved = self.weight_bytes * weights + width * (c.hidden * rows + adapters + 2 * c.layers * heads * held)
        return max(flops / self.rates.flops, (1 + training) * moved / self.rates.bytes)
