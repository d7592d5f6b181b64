"""TextWorld: text adventures made from seeds, with an exact account of what every action changes."""

from swirl_lightning.benchmarks.textworld.datamodule import TextWorld
from swirl_lightning.benchmarks.textworld.facts import read, visible, write
from swirl_lightning.benchmarks.textworld.games import World, play
from swirl_lightning.benchmarks.textworld.metrics import EffectAccuracy, ExactStateMatch, Hallucination, Preservation

__all__ = [
    "EffectAccuracy",
    "ExactStateMatch",
    "Hallucination",
    "Preservation",
    "TextWorld",
    "World",
    "play",
    "read",
    "visible",
    "write",
]
