"""Errors of transformers over files of a model, told so that they name it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

_LONGEST_REASON = 300  # characters of a library's message


@contextmanager
def readable(name: str | Path) -> Iterator[None]:
    """Have what a damaged or crafted file of a model raises in transformers name the model, as one ValueError.

    Errors of the system, of missing packages and of full memory stay, and so do ValueErrors that name it.

    Raises:
        ValueError: the model cannot be loaded.
    """
    try:
        yield
    except (OSError, ImportError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        reason = " ".join(str(error).split())
        if isinstance(error, ValueError) and str(name) in reason:
            raise
        raise ValueError(
            f"{str(name)!r} cannot be loaded ({type(error).__name__}: {reason[:_LONGEST_REASON]}): a file of it, "
            "such as config.json or tokenizer.json, is damaged, or needs another version of transformers"
        ) from error


def refuse_incomplete(name: str, found: dict[str, Any]) -> None:
    """Raise ValueError if a model's files lack weights, which transformers then draws at random.

    Args:
        name: of the model.
        found: what ``from_pretrained`` returns for ``output_loading_info``.
    """
    if lacking := sorted(found["missing_keys"]):
        first = ", ".join(lacking[:3]) + ", ..." * (len(lacking) > 3)
        raise ValueError(
            f"the files of {name!r} lack {len(lacking)} weights ({first}), which would be random: "
            "the download is incomplete, or the model is of another class"
        )
