"""Padding of rows of unequal length."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from swirl_lightning.engine.grammar import TokenIds


def pad_left(rows: Sequence[TokenIds], device: torch.device) -> tuple[Tensor, Tensor]:
    """Pad with 0 on the left; returns ids (B, P) and their mask (B, P) of 0 and 1."""
    return _pad(rows, "left", device)


def pad_right(rows: Sequence[TokenIds], device: torch.device) -> tuple[Tensor, Tensor]:
    """Pad with 0 on the right; returns ids (B, P) and their mask (B, P) of 0 and 1."""
    return _pad(rows, "right", device)


def _pad(rows: Sequence[TokenIds], side: str, device: torch.device) -> tuple[Tensor, Tensor]:
    ids = [torch.tensor(row, dtype=torch.long) for row in rows]  # on the CPU: one copy to the device for all
    mask = [torch.ones_like(row) for row in ids]
    padded = (nn.utils.rnn.pad_sequence(part, batch_first=True, padding_side=side) for part in (ids, mask))
    return tuple(part.to(device) for part in padded)  # type: ignore[return-value]


def positions(mask: Tensor) -> Tensor:
    """Count the unmasked tokens before each token: (B, P) -> (B, P); 0 on padding."""
    return (mask.cumsum(1) - 1).clamp_(min=0)
