"""AURORA-Bench."""

from swirl_lightning.benchmarks.aurora.datamodule import Aurora

__all__ = ["Aurora"]
