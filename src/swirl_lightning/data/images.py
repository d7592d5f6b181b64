"""Opening of image files as RGB, and reasons to refuse them."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image

from swirl_lightning.backbones.images import to_rgb

ImageSource = Path | bytes
"""An image file, or the content of one."""

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
"""What is opened; other readers of Pillow hand a file on to other programs (EPS), or are little tried."""

_THREADS = 8  # Pillow decodes without the interpreter lock


def open_rgb(source: ImageSource) -> Image.Image:
    """Open an image as 8-bit RGB from any mode (palette, CMYK, 16-bit grey), transparent pixels over white.

    Raises:
        OSError: no such file, none of `FORMATS`, cut short, damaged, or of more than ``PIL.Image.MAX_IMAGE_PIXELS``
            pixels; the message names the file.
    """
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS) as image:
            if image.width * image.height > (Image.MAX_IMAGE_PIXELS or math.inf):
                raise ValueError(f"{image.width} x {image.height} pixels are more than {Image.MAX_IMAGE_PIXELS}")
            opened = to_rgb(image)
            return opened.copy() if opened is image else opened  # not tied to the file
    except Exception as error:  # of damaged files, Pillow's readers raise whatever they stumble over
        raise OSError(f"cannot read the image {_name(source)}: {error}") from error


def image_problem(source: ImageSource) -> str | None:
    """Return why an image cannot be used, or None. Reads every pixel: some files are only found to be cut then."""
    if isinstance(source, bytes):
        size = len(source)
    elif os.path.isfile(source):  # no Path.is_file, which raises on names that cannot be
        size = os.path.getsize(source)
    else:
        return "missing"
    if size == 0:
        return "empty (zero bytes)"
    try:
        open_rgb(source)
    except OSError as error:
        return f"not readable ({error.__cause__ or error})"
    return None


def image_problems(sources: Iterable[ImageSource]) -> dict[ImageSource, str | None]:
    """Return the answer of `image_problem` for each."""
    every = list(dict.fromkeys(sources))
    with ThreadPoolExecutor(_THREADS) as pool:
        return dict(zip(every, pool.map(image_problem, every), strict=True))


def _name(source: ImageSource) -> str:
    return f"of {len(source)} bytes" if isinstance(source, bytes) else str(source)
