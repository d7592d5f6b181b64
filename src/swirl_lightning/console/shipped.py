"""Classes of the package that an option may name without their module, as in ``--data MiniGrid``."""

from __future__ import annotations

import pkgutil
from importlib import import_module

PACKAGES = ("swirl_lightning.backbones", "swirl_lightning.benchmarks", "swirl_lightning.data")


def import_shipped() -> None:
    """Import the classes that options choose: the parser knows the short names of imported classes alone."""
    for name in PACKAGES:
        for module in pkgutil.iter_modules(import_module(name).__path__, f"{name}."):
            import_module(module.name)
