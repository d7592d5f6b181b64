"""Conversion between images and the pixel tensors of an image tokenizer."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from swirl_lightning.backbones.images import square


def to_pixels(images: list[Image.Image], resolution: int) -> Tensor:
    """Convert B images to pixels, (B, 3, resolution, resolution) float32 in [-1, 1]."""
    arrays = np.stack([np.asarray(square(image, resolution)) for image in images])
    return torch.from_numpy(arrays).permute(0, 3, 1, 2).float() / 127.5 - 1


def to_images(pixels: Tensor) -> list[Image.Image]:
    """Convert pixels (B, 3, H, W), about [-1, 1], to B RGB images; values outside are clipped."""
    arrays = (pixels.float().clamp(-1, 1) + 1).mul(127.5).round().to(torch.uint8)
    return [Image.fromarray(a) for a in arrays.permute(0, 2, 3, 1).cpu().numpy()]
