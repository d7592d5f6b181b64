"""An encoder with features of our choice, and images and rows for it."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from swirl_lightning.transition import Transition


class Vectors:
    """An encoder with features of our choice: an image's are its first pixel, scaled to length 1."""

    def images(self, images, squashed=False):
        raw = torch.tensor(np.array([p.getpixel((0, 0)) for p in images]), dtype=torch.float32) - 128
        return torch.nn.functional.normalize(raw, dim=-1)

    def texts(self, texts):
        raw = torch.tensor([[float(v) for v in text.split()] for text in texts])
        return torch.nn.functional.normalize(raw, dim=-1)


def colour(*rgb):
    return Image.new("RGB", (4, 4), tuple(128 + v for v in rgb))


def row(before, after, **meta):
    return Transition(before, after, "do it", id="r", meta=meta)


X, Y, Z = colour(100, 0, 0), colour(0, 100, 0), colour(0, 0, 100)
