"""Mind2Web."""

from swirl_lightning.benchmarks.mind2web.datamodule import Mind2Web

__all__ = ["Mind2Web"]
