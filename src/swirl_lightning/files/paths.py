"""Checks of where a command writes, before the work whose results come there; paths from a folder."""

from __future__ import annotations

import os
from pathlib import Path


def check_writable(folder: Path, option: str = "--to") -> None:
    """Raise if a folder cannot be written to, or made; before the work whose results it will get.

    Args:
        folder: that folder.
        option: that names it, for the message.

    Raises:
        FileExistsError: it, or one that it would be made in, is a file.
        PermissionError: its rights forbid it.
    """
    place = next(part for part in (folder.absolute(), *folder.absolute().parents) if part.exists())
    if not place.is_dir():
        raise FileExistsError(f"{place} is no folder: name one with {option}")
    if not os.access(place, os.W_OK | os.X_OK):
        raise PermissionError(f"{place} may not be written: change its rights, or name another folder with {option}")


def check_folder(path: Path) -> None:
    """Raise if :func:`~swirl_lightning.files.writing.whole_folder` cannot replace a folder, or must not.

    Raises:
        ValueError: it is the folder of this process, which would then be in none.
        OSError: as :func:`check_writable`, of the folder that it lies in.
    """
    check_writable(path.parent)
    if Path.cwd().is_relative_to(path.resolve()):
        raise ValueError(f"you are in the folder {path}, and a new one would take its place: give --to another folder")


def relative_to(folder: Path, path: Path) -> str:
    """Write the path of a file from a folder, with ``/``; it holds where one of them lies below a link, too."""
    return os.path.relpath(path.parent.resolve() / path.name, folder.resolve()).replace(os.sep, "/")
