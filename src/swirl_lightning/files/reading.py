"""Text files of the user, and of a model."""

from __future__ import annotations

from pathlib import Path

_SMALL = 100_000


def read_words(path: Path) -> str:
    """Read a text file of the user's.

    Raises:
        ValueError: it is no UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text: {error}; save it as UTF-8, or name another file") from None


def small_text(path: Path) -> str:
    """Read a text file that comes with a model.

    Raises:
        ValueError: it has more than 100,000 bytes, where 2,000 are usual, and what reads it may take a time that grows
            with their square; or it is no UTF-8.
    """
    if (size := path.stat().st_size) > _SMALL:
        raise ValueError(f"{size:,} bytes are more than {_SMALL:,}")
    return path.read_text(encoding="utf-8")
