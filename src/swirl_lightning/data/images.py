"""Image files as they come: opened as RGB, or refused with a reason."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image

from swirl_lightning.backbones.images import to_rgb

ImageSource = Path | bytes
"""An image file, or the content of one."""

_ENDS = {"JPEG": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82"}
_TAIL = 64  # bytes at the end of a file in which its end mark must be; some writers pad


def open_rgb(source: ImageSource) -> Image.Image:
    """An image as 8-bit RGB, whatever it is stored as: palette, CMYK, 16-bit grey; transparent pixels over white.

    Raises:
        OSError: no such file, no image, or cut short; the message names the file.
    """
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            opened = to_rgb(image)
            return opened.copy() if opened is image else opened  # not tied to the file
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise OSError(f"cannot read the image {_name(source)}: {error}") from error


def image_problem(source: ImageSource, decode: bool = True) -> str | None:
    """What keeps an image from being used, or None.

    Args:
        source: the image.
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
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            mark = _ENDS.get(image.format or "")
            image.verify()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        return f"not readable ({error.__cause__ or error})"
    return "cut short" if mark and mark not in _tail(source) else None


def _tail(source: ImageSource) -> bytes:
    if isinstance(source, bytes):
        return source[-_TAIL:]
    with open(source, "rb") as file:
        file.seek(max(0, source.stat().st_size - _TAIL))
        return file.read()


def _name(source: ImageSource) -> str:
    return f"of {len(source)} bytes" if isinstance(source, bytes) else str(source)
