"""GEdit-Bench."""

from swirl_lightning.benchmarks.gedit.datamodule import GEdit

__all__ = ["GEdit"]
