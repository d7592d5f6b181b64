"""Names of a package that are imported at first use."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def lazy_names(package: str, homes: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Make a package's ``__getattr__`` and ``__dir__`` (PEP 562).

    Args:
        package: its name.
        homes: name -> full name of the module that defines it.
    """

    def find(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}; there are: {sorted(homes)}")
        return getattr(import_module(homes[name]), name)

    def known() -> list[str]:
        return sorted({*vars(import_module(package)), *homes})

    return find, known
