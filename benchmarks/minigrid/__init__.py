"""MiniGrid: an exact simulator, RGB frames, actions in words; the benchmark of the embedded default."""

from swirl_lightning.benchmarks.minigrid.simulator import FAMILIES, SPLITS, generate, split_of
from swirl_lightning.benchmarks.minigrid.tiles import CELLS, describe, random_scene, read, render

__all__ = ["CELLS", "FAMILIES", "SPLITS", "describe", "generate", "random_scene", "read", "render", "split_of"]
