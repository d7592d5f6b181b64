"""Errors of a device that has run out of memory, whatever their class."""

from __future__ import annotations

import torch

_MESSAGES = ("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")
"""Of errors that are not of torch's allocator: graphs, and libraries with memory of their own."""


def ran_out(error: BaseException) -> bool:
    """Tell whether it is one of them."""
    told = isinstance(error, RuntimeError) and any(message in str(error) for message in _MESSAGES)
    return told or isinstance(error, torch.OutOfMemoryError)
