"""Errors of a device that has run out of memory, whatever their class."""

from __future__ import annotations

import torch

_MESSAGES = ("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")
"""Of errors that are not of torch's allocator: graphs, and libraries with memory of their own."""


def ran_out(error: BaseException | None) -> bool:
    """Tell whether memory ran out, be it that a later error, of the end of a capture for example, took its place."""
    while error is not None:
        if isinstance(error, torch.OutOfMemoryError):
            return True
        if isinstance(error, RuntimeError) and any(message in str(error) for message in _MESSAGES):
            return True
        error = error.__context__
    return False
