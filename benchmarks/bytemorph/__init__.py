"""ByteMorph-Bench."""

from swirl_lightning.benchmarks.bytemorph.datamodule import ByteMorph

__all__ = ["ByteMorph"]
