"""The C library's allocator on CPUs."""

from __future__ import annotations

import ctypes
import sys
from contextlib import suppress

_M_MMAP_THRESHOLD = -3  # of mallopt(3)
OWN_MAPPING = 4 << 20
"""Bytes from which a block is mapped on its own, and so given back as soon as it is freed."""


def give_freed_blocks_back() -> None:
    """Keep activations out of glibc's heap, where the holes between them are lost.

    glibc raises its threshold to 32 MiB as soon as such a block is freed. Activations of some megabytes then
    lie in the heap, and a policy update's peak grows by half (``docs/performance.md``). Other C libraries are left
    as they are.
    """
    if sys.platform == "linux":
        with suppress(AttributeError):
            ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, OWN_MAPPING)
