"""Metrics of predicted frames, cell by cell: changed cells, unchanged cells, and the whole frame.

Cells are compared by the kind that they show (the nearest tile), so a slightly blurred key is a key. A prediction of
another size, as of a model with frames of its own, is stretched to that of the data's.
All three pool their counts over transitions and sum over devices; each is NaN before the first row.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchmetrics import Metric

from swirl_lightning.benchmarks.minigrid.tiles import Scene, read, resized
from swirl_lightning.transition import State, Transition

_UNREADABLE = 255  # no kind of cell, so equal to none


class CellMetric(Metric, ABC):
    """Share of hits, pooled over transitions; subclasses define hits and trials.

    A missing prediction, and a text, have every cell wrong.

    Args:
        kwargs: as for `torchmetrics.Metric`.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    sums: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("sums", torch.zeros(2, dtype=torch.int64), dist_reduce_fx="sum")  # of hits and of trials

    @abstractmethod
    def count(self, before: Scene, after: Scene, predicted: Scene) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Count hits and trials of each of N transitions, from (N, G, G) scenes."""

    def update(self, predicted: Sequence[State | None], transitions: Sequence[Transition]) -> None:
        """Add one predicted frame per transition.

        Raises:
            ValueError: predictions and transitions differ in number, or a transition's frames are none of MiniGrid.
        """
        if len(predicted) != len(transitions):
            raise ValueError(f"{len(predicted)} predictions for {len(transitions)} transitions")
        if not transitions:
            return
        frames = [state for row in transitions for state in (row.before, row.observed) if not isinstance(state, str)]
        scenes = read(frames)  # before and after in turn
        hits, trials = self.count(scenes[::2], scenes[1::2], _predicted(predicted, scenes.shape[-1]))
        self.sums += torch.tensor([int(hits.sum()), int(trials.sum())], device=self.sums.device)

    def compute(self) -> Tensor:
        """Compute hits over trials, in [0, 1]."""
        return self.sums[0].float() / self.sums[1]


class EffectAccuracy(CellMetric):
    """Share of the cells that the action changed whose prediction is right."""

    def count(self, before: Scene, after: Scene, predicted: Scene) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Count changed cells."""
        changed = before != after
        return _per_row(changed & (predicted == after)), _per_row(changed)


class Preservation(CellMetric):
    """Share of the unchanged cells that are predicted unchanged."""

    def count(self, before: Scene, after: Scene, predicted: Scene) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Count unchanged cells."""
        unchanged = before == after
        return _per_row(unchanged & (predicted == after)), _per_row(unchanged)


class ExactFrameMatch(CellMetric):
    """Share of the frames with all cells right."""

    def count(self, before: Scene, after: Scene, predicted: Scene) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Count whole frames."""
        exact = (predicted == after).all(axis=(1, 2)).astype(np.int64)
        return exact, np.ones_like(exact)


def _per_row(cells: NDArray[np.bool_]) -> NDArray[np.int64]:
    return cells.sum(axis=(1, 2), dtype=np.int64)


def _predicted(states: Sequence[State | None], grid: int) -> Scene:
    """Read scenes, (N, grid, grid); what is no image has no kind of cell anywhere."""
    scenes = np.full((len(states), grid, grid), _UNREADABLE, dtype=np.uint8)
    frames = {row: resized(state, grid) for row, state in enumerate(states) if isinstance(state, Image.Image)}
    if frames:
        scenes[list(frames)] = read(list(frames.values()))
    return scenes
