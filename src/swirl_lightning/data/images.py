"""Opening of image files as RGB, and reasons to refuse them."""

from __future__ import annotations

import contextlib
import io
import math
import os
import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile
from PIL.TiffImagePlugin import TiffImageFile

from swirl_lightning.backbones.images import to_rgb

ImageSource = Path | bytes
"""An image file, or the content of one."""

MISSING = "missing"
"""The problem of a file that is not there."""
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
"""What is opened; other readers of Pillow hand a file on to other programs (EPS), or are little tried."""

_THREADS = 8  # Pillow decodes without the interpreter lock
_LARGE = 16_000_000  # pixels, of which a file of a few kilobytes can have; they take up to 16 bytes each on the way
_ONE_LARGE = threading.Lock()
_SCAN = b"\xff\xda"  # begins a scan of a JPEG; no data of one hold it
_MOST_SCANS = 500  # of which each is drawn over the whole image; encoders write ten or so
_TILE_WIDTH, _TILE_LENGTH = 322, 323  # tags of TIFF


def open_rgb(source: ImageSource) -> Image.Image:
    """Open an image as 8-bit RGB from any mode (palette, CMYK, 16-bit grey), transparent pixels over white.

    Raises:
        OSError: no such file, none of `FORMATS`, cut short, damaged, or of more than ``PIL.Image.MAX_IMAGE_PIXELS``
            pixels; the message names the file.
    """
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS) as image:
            _check_size(image, source)
            with _ONE_LARGE if image.width * image.height > _LARGE else contextlib.nullcontext():
                opened = to_rgb(image)
                return opened.copy() if opened is image else opened  # not tied to the file
    except Exception as error:  # of damaged files, Pillow's readers raise whatever they stumble over
        raise OSError(f"cannot read the image {_name(source)}: {error}") from error


def _check_size(image: Image.Image, source: ImageSource) -> None:
    """Raise ValueError where a decoder would fill the memory, or take far longer than for an image of that size."""
    sizes = [image.size]
    if isinstance(image, TiffImageFile):  # whose tiles are decoded whole, however small the image
        tags = image.tag_v2
        sizes.append((int(tags.get(_TILE_WIDTH, 0)), int(tags.get(_TILE_LENGTH, 0))))
    for width, height in sizes:
        if width * height > (Image.MAX_IMAGE_PIXELS or math.inf):
            raise ValueError(f"{width} x {height} pixels are more than {Image.MAX_IMAGE_PIXELS}")
    if isinstance(image, JpegImageFile):
        content = source if isinstance(source, bytes) else source.read_bytes()
        scans = content.count(_SCAN)
        if scans > _MOST_SCANS:
            raise ValueError(f"it draws over itself {scans} times, more than {_MOST_SCANS}")


def image_problem(source: ImageSource) -> str | None:
    """Return why an image cannot be used, or None. Reads every pixel: some files are only found to be cut then."""
    if isinstance(source, bytes):
        size = len(source)
    elif os.path.isfile(source):  # no Path.is_file, which raises on names that cannot be
        size = os.path.getsize(source)
    else:
        return MISSING
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
