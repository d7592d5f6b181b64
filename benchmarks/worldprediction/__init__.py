"""WorldPredictionBench."""

from swirl_lightning.benchmarks.worldprediction.datamodule import WorldPrediction

__all__ = ["WorldPrediction"]
