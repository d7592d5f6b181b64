"""A small TextWorld."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

from swirl_lightning.benchmarks.textworld import World

SMALL = World(rooms=2, objects=6, quest_length=3, steps=8)
needs_engine = pytest.mark.skipif(find_spec("textworld") is None, reason="TextWorld is not installed")
