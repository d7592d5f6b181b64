"""Picture files as they come: opened as RGB, or refused with a reason."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image

from swirl_lightning.backbones.images import to_rgb

PictureSource = Path | bytes
"""A picture file, or the content of one."""

_ENDS = {"JPEG": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82"}
_TAIL = 64  # bytes at the end of a file in which its end mark must be; some writers pad


def open_rgb(source: PictureSource) -> Image.Image:
    """A picture as 8-bit RGB, whatever it is stored as: palette, CMYK, 16-bit grey; transparent pixels over white.

    Raises:
        OSError: no such file, no picture, or cut short; the message names the file.
    """
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as picture:
            opened = to_rgb(picture)
            return opened.copy() if opened is picture else opened  # not tied to the file
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise OSError(f"cannot read the picture {_name(source)}: {error}") from error


def picture_problem(source: PictureSource, decode: bool = True) -> str | None:
    """What keeps a picture from being used, or None.

    Args:
        source: the picture.
        decode: read every pixel. Otherwise headers, and the mark at the end of a JPEG or PNG file: enough
            to find files that are cut short, some hundred times faster.
    """
    if isinstance(source, Path):
        if not source.is_file():
            return "missing"
        if source.stat().st_size == 0:
            return "empty (zero bytes)"
    elif not source:
        return "empty (zero bytes)"
    try:
        if decode:
            open_rgb(source)
            return None
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as picture:
            mark = _ENDS.get(picture.format or "")
            picture.verify()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        return f"not readable ({error.__cause__ or error})"
    return "cut short" if mark and mark not in _tail(source) else None


def _tail(source: PictureSource) -> bytes:
    if isinstance(source, bytes):
        return source[-_TAIL:]
    with open(source, "rb") as file:
        file.seek(max(0, source.stat().st_size - _TAIL))
        return file.read()


def _name(source: PictureSource) -> str:
    return f"of {len(source)} bytes" if isinstance(source, bytes) else str(source)
