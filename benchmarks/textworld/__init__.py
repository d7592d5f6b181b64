"""TextWorld: text adventures made from seeds, with exact metrics of the changes that an action makes."""

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
