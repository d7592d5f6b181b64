"""DiscEdit, AURORA-Bench's discriminative score: the right text must change an image less."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchmetrics import Metric

from swirl_lightning.transition import State, Transition

Latents = Callable[[Sequence[Image.Image]], Tensor]
"""Function from N images to their latents, (N, ...)."""


class DiscEdit(Metric):
    """Share of sample pairs in which the text that needs the smaller change has led to the smaller change.

    For each image there are two texts, ``pos`` (needs less change) and ``neg``, with a number of samples
    each. d = L2 of the flattened latents between output and source; score = mean of [d_pos < d_neg] over
    images and samples, with standard error sqrt(p (1 - p) / n), as in the authors' evaluation.

    A row is named by ``meta["disc"] = {"item": 3, "side": "pos", "sample": 0}``; other rows do not count. With
    a missing output its pair counts as wrong. The two rows of a pair may be on different devices.

    Args:
        latents: of images; for Liquid those of its VQGAN before quantisation.
        items: number of images.
        samples: for each text.
        kwargs: as for `torchmetrics.Metric`.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    distances: Tensor
    seen: Tensor

    def __init__(self, latents: Latents, items: int, samples: int = 4, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.latents = latents
        shape = (items, 2, samples)  # pos, neg
        self.add_state("distances", torch.zeros(shape, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("seen", torch.zeros(shape, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, predicted: Sequence[State | None], transitions: Sequence[Transition]) -> None:
        """Add the change of one output per transition."""
        for output, row in zip(predicted, transitions, strict=True):
            disc = row.meta.get("disc")
            if disc is None:
                continue
            place = disc["item"], ("pos", "neg").index(disc["side"]), disc["sample"]
            distance = float("nan")  # compares false with everything: the pair counts as wrong
            if isinstance(output, Image.Image) and isinstance(row.before, Image.Image):
                made, source = self.latents([output, row.before]).double().flatten(1).cpu()
                distance = float((made - source).norm())
            self.distances[place] = distance
            self.seen[place] = 1

    def compute(self) -> dict[str, Tensor]:
        """Compute ``disc_edit`` and ``disc_edit_standard_error``; empty before the first complete pair."""
        complete = (self.seen[:, 0] > 0) & (self.seen[:, 1] > 0)  # (items, samples)
        n = complete.sum()
        if n == 0:
            return {}
        p = (self.distances[:, 0] < self.distances[:, 1])[complete].double().mean()
        return {"disc_edit": p.float(), "disc_edit_standard_error": (p * (1 - p) / n).sqrt().float()}
