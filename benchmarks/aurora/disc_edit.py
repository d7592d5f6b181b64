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
        tasks: of each image.
        samples: for each text.
        kwargs: as for `torchmetrics.Metric`.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    distances: Tensor
    seen: Tensor

    def __init__(self, latents: Latents, tasks: Sequence[str], samples: int = 4, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.latents, self.tasks = latents, tuple(tasks)
        shape = (len(self.tasks), 2, samples)  # pos, neg
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
        """Compute ``disc_edit``, ``disc_edit/<task>`` and ``disc_edit_standard_error``; empty before the first pair."""
        found: dict[str, Tensor] = {}
        for key, pairs in self._pairs().items():
            right = (self.distances[:, 0] < self.distances[:, 1])[pairs].double()
            found[key] = right.mean().float()
            if key == "disc_edit":
                p = right.mean()
                found["disc_edit_standard_error"] = (p * (1 - p) / len(right)).sqrt().float()
        return found

    def row_counts(self) -> dict[str, Tensor]:
        """Count the images behind each share."""
        return {key: pairs.any(1).sum() for key, pairs in self._pairs().items()}

    def _pairs(self) -> dict[str, Tensor]:
        """Complete pairs of samples behind each share, (images, samples) bool."""
        complete = (self.seen[:, 0] > 0) & (self.seen[:, 1] > 0)
        of = {task: torch.tensor([own == task for own in self.tasks]) for task in dict.fromkeys(self.tasks)}
        found = {f"disc_edit/{task}": complete & mine.to(complete.device)[:, None] for task, mine in of.items()}
        return {key: pairs for key, pairs in (found | {"disc_edit": complete}).items() if pairs.any()}
