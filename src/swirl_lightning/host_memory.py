"""How memory is taken and given back on CPUs."""

from __future__ import annotations

import ctypes
import os
import sys
from contextlib import suppress

HUGE_PAGES = "THP_MEM_ALLOC_ENABLE"
"""PyTorch's own switch, which it reads once, when the first tensor is made: large tensors in pages of 2 MiB."""
os.environ.setdefault(HUGE_PAGES, "1")  # blocks that are mapped anew each time cost a fault a page

_M_MMAP_THRESHOLD = -3  # of mallopt(3)
OWN_MAPPING = 4 << 20
"""Bytes from which a block is mapped on its own, and so given back as soon as it is freed."""


def give_freed_blocks_back() -> None:
    """Keep activations out of glibc's heap, where the holes between them are lost.

    glibc raises its threshold to 32 MiB as soon as such a block is freed. Activations of some megabytes then
    lie in the heap, and a step's peak doubles (``docs/performance.md``). Other C libraries are left
    as they are.
    """
    if sys.platform == "linux":
        with suppress(AttributeError):
            ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, OWN_MAPPING)
