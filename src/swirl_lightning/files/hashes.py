"""Hashes of files and of contents."""

from __future__ import annotations

import hashlib
from pathlib import Path


def sha256(path: str | Path) -> str:
    """Compute the hexadecimal SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(content: bytes) -> str:
    """Return the first 16 hexadecimal digits of a content's SHA-256, to tell it from others."""
    return hashlib.sha256(content).hexdigest()[:16]


def content_key(content: bytes) -> str:
    """Return 32 hexadecimal digits of a content's BLAKE2b, under which what belongs to it is kept."""
    return hashlib.blake2b(content, digest_size=16).hexdigest()
