"""The four CLIP scores of ByteMorph-Bench (arXiv 2506.03107, official evaluation script)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from swirl_lightning.metrics.category_means import CategoryMeans
from swirl_lightning.metrics.clip import CLIPEncoder
from swirl_lightning.transition import State, Transition

EDIT_TYPES = ("camera_zoom", "camera_motion", "object_motion", "human_motion", "interaction")


class ByteMorphDirections(CategoryMeans):
    """Direction of the change of a generated image, compared with that of the target and of the captions.

    With unit features I (image) and T (caption):

    - ``clip_sim_img`` = cos(I_src, I_gen)
    - ``clip_sim_txt`` = cos(I_gen, T_tgt)
    - ``clip_d_txt`` = cos(I_gen - I_src, T_tgt - T_src)
    - ``clip_d_img`` = cos(I_tgt - I_src, I_gen - I_src)

    A direction of length 0 (generated = source) gives 0, never NaN. A missing prediction has 0 in all four.
    Captions are read from ``meta["src_caption"]`` and ``meta["tgt_caption"]``; without them the two text scores
    are not counted.

    Args:
        encoder: the CLIP model; the benchmark's is ``openai/clip-vit-base-patch32``.
        categories: edit types.
        by: see `CategoryMeans`.
        kwargs: as for `CategoryMeans`.
    """

    def __init__(
        self,
        encoder: CLIPEncoder,
        categories: Sequence[str] = EDIT_TYPES,
        by: str = "edit_type",
        **kwargs: Any,
    ) -> None:
        names = ("clip_sim_img", "clip_sim_txt", "clip_d_txt", "clip_d_img")
        super().__init__(names, categories, by, **kwargs)
        self.encoder = encoder

    def update(self, predicted: Sequence[State | None], transitions: Sequence[Transition]) -> None:
        """Add one predicted image per transition."""
        for image, row in zip(predicted, transitions, strict=True):
            captions = [row.meta.get("src_caption"), row.meta.get("tgt_caption")]
            written = all(isinstance(caption, str) and caption.strip() for caption in captions)
            if not isinstance(image, Image.Image):
                text = 0.0 if written else None
                self.add([(0.0, text, text, 0.0)], [row])
                continue
            assert isinstance(row.before, Image.Image)
            assert isinstance(row.observed, Image.Image)
            source, target, made = self.encoder.images([row.before, row.observed, image], squashed=True)
            sim_txt = d_txt = None
            if written:
                text_source, text_target = self.encoder.texts([str(caption) for caption in captions])
                sim_txt = cosine(made, text_target)
                d_txt = cosine(made - source, text_target - text_source)
            values = (cosine(source, made), sim_txt, d_txt, cosine(target - source, made - source))
            self.add([values], [row])


def cosine(one: Tensor, other: Tensor, tiny: float = 1e-6) -> float:
    """Compute the cosine of two vectors (D,); 0 where one of them is shorter than ``tiny``."""
    lengths = one.double().norm() * other.double().norm()
    if min(float(one.norm()), float(other.norm())) < tiny:
        return 0.0
    return float(torch.dot(one.double(), other.double()) / lengths)
