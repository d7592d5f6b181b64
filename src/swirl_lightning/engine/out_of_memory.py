"""Errors of a device that has run out of memory, whatever their class."""

from __future__ import annotations

import torch

_MESSAGES = ("error: out of memory", "ALLOC_FAILED", "ALLOCATION_FAILED")
"""Of errors that are not of torch's allocator: CUDA's own, as of graphs, and those of cuBLAS and cuDNN."""


def ran_out(error: BaseException) -> bool:
    """Tell whether it is one of them."""
    told = isinstance(error, RuntimeError) and any(message in str(error) for message in _MESSAGES)
    return told or isinstance(error, torch.OutOfMemoryError)
