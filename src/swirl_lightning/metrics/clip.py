"""CLIP similarity of predicted images to the target and to the source (AURORA-Bench, arXiv 2407.03471)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import CLIPModel, PreTrainedTokenizerBase
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from swirl_lightning.backbones.loading import load_plain
from swirl_lightning.engine.ranges import check_ranges
from swirl_lightning.metrics.category_means import CategoryMeans
from swirl_lightning.transition import State, Transition

_LONGEST = 8  # times the shorter side


class CLIPEncoder:
    """CLIP encoder of images and texts as unit vectors, loaded at first use and shared by all metrics.

    Args:
        name_or_path: CLIP checkpoint, a hub name (``openai/clip-vit-base-patch32``) or a folder.
        device: where it runs; None for the GPU if there is one.
        batch_size: images or texts at a time.
    """

    def __init__(self, name_or_path: str, device: str | None = None, batch_size: int = 32) -> None:
        self.name_or_path = name_or_path
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        check_ranges("CLIPEncoder", {"batch_size": batch_size}, batch_size="whole [1, inf)")
        self.batch_size = batch_size

    @torch.no_grad()
    def images(self, images: Sequence[Image.Image], squashed: bool = False) -> Tensor:
        """Encode N images as (N, D) float32 on the CPU, each row of length 1.

        Args:
            images: of any sizes.
            squashed: brought to the model's square as ByteMorph-Bench does it: whole, by bicubic interpolation
                without a filter. Otherwise as CLIP does it: the square in the middle, its side the image's shorter one.
        """
        pixels_of = _squashed if squashed else _cropped
        _, model = _load(self.name_or_path, self.device)
        side = model.config.vision_config.image_size
        found = []
        for start in range(0, len(images), self.batch_size):
            pixels = torch.stack([pixels_of(p, side) for p in images[start : start + self.batch_size]])
            found.append(_features(model.get_image_features(pixel_values=pixels.to(self.device))))
        return _unit(found)

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> Tensor:
        """Encode N texts as (N, D) float32 on the CPU, each row of length 1; long texts are cut as CLIP needs."""
        tokenizer, model = _load(self.name_or_path, self.device)
        longest = model.config.text_config.max_position_embeddings
        found = []
        for start in range(0, len(texts), self.batch_size):
            batch = list(texts[start : start + self.batch_size])
            ids = tokenizer(batch, padding=True, truncation=True, max_length=longest, return_tensors="pt")
            features = model.get_text_features(
                input_ids=ids["input_ids"].to(self.device),
                attention_mask=ids["attention_mask"].to(self.device),
            )
            found.append(_features(features))
        return _unit(found)


@lru_cache(maxsize=2)
def _load(name_or_path: str, device: torch.device) -> tuple[PreTrainedTokenizerBase, Any]:
    try:
        return load_plain(name_or_path, CLIPModel, device)
    except (OSError, ValueError) as error:
        raise OSError(
            f"cannot load CLIP from {name_or_path!r}: {error}. Set clip to a hub name, to the folder of a "
            "CLIP checkpoint, or to null to go without."
        ) from error


def _cropped(image: Image.Image, side: int) -> Tensor:
    shorter = min(image.size)
    if max(image.size) > _LONGEST * shorter:  # the ends of a strip, which are cut off, would fill the memory
        (x, y), (far, deep) = ((length - min(length, _LONGEST * shorter)) // 2 for length in image.size), image.size
        image = image.crop((x, y, far - x, deep - y))
    wide, high = (int(side * length / shorter) for length in image.size)
    image = image.convert("RGB").resize((wide, high), Image.Resampling.BICUBIC)
    left, top = round((wide - side) / 2), round((high - side) / 2)
    return _normalised(_values(image.crop((left, top, left + side, top + side))))


def _squashed(image: Image.Image, side: int) -> Tensor:
    values = _values(image.convert("RGB"))[None]
    return _normalised(torch.nn.functional.interpolate(values, (side, side), mode="bicubic", align_corners=False)[0])


def _values(image: Image.Image) -> Tensor:
    """Values in [0, 1], (3, H, W)."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255


def _normalised(values: Tensor) -> Tensor:
    mean, deviation = (torch.tensor(of)[:, None, None] for of in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD))
    return (values - mean) / deviation


def _features(output: Any) -> Tensor:
    """Return the projected features, which transformers 5 may wrap."""
    return (output if isinstance(output, Tensor) else output.pooler_output).float().cpu()


def _unit(parts: list[Tensor]) -> Tensor:
    return torch.nn.functional.normalize(torch.cat(parts), dim=-1) if parts else torch.zeros(0, 1)


class CLIPSimilarity(CategoryMeans):
    """Cosine similarity of a generated image to the target and to the source.

    - ``clip_target``: generated / target, where there is one.
    - ``clip_source``: generated / source.
    - ``clip_nearer_target``: share of rows nearer the target than the source. A copy of the source is not.

    A prediction that is missing or no image has 0 everywhere.

    Args:
        encoder: CLIP model.
        categories: see `CategoryMeans`.
        by: see `CategoryMeans`.
        kwargs: as for `CategoryMeans`.
    """

    def __init__(self, encoder: CLIPEncoder, categories: Sequence[str] = (), by: str = "task", **kwargs: Any) -> None:
        super().__init__(("clip_target", "clip_source", "clip_nearer_target"), categories, by, **kwargs)
        self.encoder = encoder

    def update(self, predicted: Sequence[State | None], transitions: Sequence[Transition]) -> None:
        """Add one predicted image per transition."""
        rows = list(zip(predicted, transitions, strict=True))
        usable = [(p, t) for p, t in rows if isinstance(p, Image.Image)]
        images = [s for p, t in usable for s in (p, t.before, t.after) if isinstance(s, Image.Image)]
        features = iter(self.encoder.images(images) if images else ())
        for image, transition in rows:
            known = transition.after is not None
            target, source = 0.0, 0.0
            if isinstance(image, Image.Image):
                made = next(features)
                source = float(made @ next(features))
                target = float(made @ next(features)) if known else 0.0
            values = (target if known else None, source, float(target > source) if known else None)
            self.add([values], [transition])
