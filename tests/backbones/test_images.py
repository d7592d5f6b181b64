"""Images of every kind to pixels and back."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from swirl_lightning.backbones.images import PAD_COLOUR, square, to_rgb
from swirl_lightning.backbones.pixels import to_images, to_pixels


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def test_an_image_of_the_right_size_is_not_resampled() -> None:
    image = noise(48, 48)
    assert np.array_equal(np.asarray(square(image, 48)), np.asarray(image))
    assert np.array_equal(np.asarray(to_images(to_pixels([image], 48))[0]), np.asarray(image))


def test_padding_is_centred_and_has_the_published_colour() -> None:
    out = np.asarray(square(Image.new("RGB", (40, 20), (255, 0, 0)), 40))
    assert tuple(out[0, 0]) == tuple(out[9, 5]) == tuple(out[30, 39]) == PAD_COLOUR
    assert tuple(out[10, 0]) == tuple(out[29, 39]) == (255, 0, 0)
    assert square(noise(31, 70), 16).size == (16, 16)


def test_resizing_is_lanczos() -> None:
    image = noise(64, 64)
    expected = image.resize((16, 16), Image.Resampling.LANCZOS)
    assert np.array_equal(np.asarray(square(image, 16)), np.asarray(expected))


@pytest.mark.parametrize("size", [(1, 200_000), (200_000, 1)])
def test_the_square_of_a_strip_fills_no_memory(size: tuple[int, int]) -> None:
    out = square(Image.new("RGB", size, (255, 0, 0)), 32)
    middle = out.crop((0, 15, 32, 16)) if size[0] == 1 else out.crop((15, 0, 16, 32))
    assert out.size == (32, 32)
    assert {count for count, colour in middle.getcolors() if colour == (255, 0, 0)} == {1}


def test_transparent_pixels_go_over_white() -> None:
    image = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    image.putpixel((1, 1), (10, 20, 30, 255))
    out = to_rgb(image)
    assert (out.getpixel((0, 0)), out.getpixel((1, 1))) == ((255, 255, 255), (10, 20, 30))
    assert to_rgb(Image.new("LA", (4, 4), (0, 0))).getpixel((0, 0)) == (255, 255, 255)
    palette = Image.new("P", (4, 4), 0)
    palette.info["transparency"] = 0
    assert to_rgb(palette).getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr", "HSV", "I", "F", "LA", "RGBA", "I;16"])
def test_any_mode_becomes_rgb(mode: str) -> None:
    assert to_rgb(Image.new(mode, (4, 4))).mode == "RGB"


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    image = Image.fromarray(np.full((4, 4), 128 * 257, dtype=np.uint16))
    assert to_rgb(image).getpixel((0, 0)) == (128, 128, 128)


def test_pixels_run_from_minus_one_to_one() -> None:
    image = Image.new("RGB", (8, 8), (255, 0, 0))
    pixels = to_pixels([image], 8)
    assert pixels.shape == (1, 3, 8, 8)
    assert (pixels[0, 0] == 1).all()
    assert (pixels[0, 1:] == -1).all()
    assert to_images(torch.full((1, 3, 2, 2), 7.0))[0].getpixel((0, 0)) == (255, 255, 255)


def test_a_truncated_image_is_one_clear_error() -> None:
    buffer = io.BytesIO()
    noise(64, 64).save(buffer, format="PNG")
    image = Image.open(io.BytesIO(buffer.getvalue()[:2000]))
    with pytest.raises(ValueError, match="truncated or damaged"):
        to_pixels([image], 64)
    with pytest.raises(ValueError, match="no pixels"):
        to_pixels([Image.new("RGB", (0, 5))], 64)
