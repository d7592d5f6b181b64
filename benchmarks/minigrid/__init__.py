"""MiniGrid: an exact simulator, RGB frames, actions in words; the benchmark of the embedded default."""

from swirl_lightning.benchmarks.minigrid.datamodule import MiniGrid
from swirl_lightning.benchmarks.minigrid.metrics import EffectAccuracy, ExactFrameMatch, Preservation
from swirl_lightning.benchmarks.minigrid.simulator import FAMILIES, generate
from swirl_lightning.benchmarks.minigrid.tiles import (
    CELLS,
    SPLITS,
    describe,
    random_scene,
    read,
    render,
    split_of,
)

__all__ = [
    "CELLS",
    "FAMILIES",
    "SPLITS",
    "EffectAccuracy",
    "ExactFrameMatch",
    "MiniGrid",
    "Preservation",
    "describe",
    "generate",
    "random_scene",
    "read",
    "render",
    "split_of",
]
