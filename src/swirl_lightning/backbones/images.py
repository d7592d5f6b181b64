"""Images of any kind as RGB, and as squares."""

from __future__ import annotations

import numpy as np
from PIL import Image

PAD_COLOUR = (122, 116, 104)
"""RGB colour that fills an image up to a square, as in Liquid and Chameleon."""

_LARGEST_SIDE = 8192
"""A strip of one pixel by sixty thousand is a small file, and its square would take 14 GiB."""


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image of any mode to RGB, transparent pixels over white.

    Raises:
        ValueError: the image cannot be decoded (truncated, damaged) or has no pixels.
    """
    try:
        image.load()
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(
            f"{_name(image)} cannot be decoded ({error}); it is truncated or damaged: "
            "replace it or leave it out of the data"
        ) from error
    if not image.width or not image.height:
        raise ValueError(f"{_name(image)} has no pixels (size {image.size}); leave it out of the data")
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        opaque = image.convert("RGBA")
        white = Image.new("RGBA", opaque.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, opaque).convert("RGB")
    if image.mode.startswith(("I", "F")):
        return Image.fromarray(_to_bytes(np.asarray(image))).convert("RGB")
    return image.convert("RGB")


def _name(image: Image.Image) -> str:
    filename = getattr(image, "filename", "")
    return f"image {filename!r}" if filename else "an image"


def _to_bytes(values: np.ndarray) -> np.ndarray:
    """Scale 16-bit or float grey to 8 bits; PIL's own conversion clips instead."""
    values = values.astype(np.float64)
    if values.size and values.max() > 255:
        values = values / 257
    return np.clip(np.nan_to_num(values), 0, 255).round().astype(np.uint8)


def square(image: Image.Image, resolution: int) -> Image.Image:
    """Pad an image to a square with `PAD_COLOUR`, and resize it with LANCZOS to resolution x resolution, in RGB.

    An image of this size keeps its pixels. One with a side of more than 8192 pixels is shrunk before it is padded.
    """
    image = to_rgb(image)
    if image.size == (resolution, resolution):
        return image
    side = max(image.size)
    if side > max(resolution, _LARGEST_SIDE) and image.width != image.height:
        wide, high = (max(1, round(part * resolution / side)) for part in image.size)
        image, side = image.resize((wide, high), Image.Resampling.LANCZOS), resolution
    if image.width != image.height:
        padded = Image.new("RGB", (side, side), PAD_COLOUR)
        padded.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
        image = padded
    return image.resize((resolution, resolution), Image.Resampling.LANCZOS)
