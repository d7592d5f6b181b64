"""Processes of one run: this one's place among them, and what they tell one another."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist
from torch import Tensor


def place() -> tuple[int, int]:
    """Return this process's rank and the number of ranks; (0, 1) where there is no process group."""
    together = dist.is_available() and dist.is_initialized()
    return (dist.get_rank(), dist.get_world_size()) if together else (0, 1)


def over_ranks(own: Any) -> list[Any]:
    """Gather a value of every rank, in their order. Collective."""
    ranks = place()[1]
    if ranks == 1:
        return [own]
    found: list[Any] = [None] * ranks
    dist.all_gather_object(found, own)
    return found


def everywhere(true: Tensor) -> bool:
    """Tell whether a truth value () holds on every rank. Collective; the host waits for the answer."""
    broken = (~true).float()
    if place()[1] > 1:
        dist.all_reduce(broken)
    return not broken
