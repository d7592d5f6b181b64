from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from support.tiny_families import FAMILIES


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A small checkpoint of every family, shared by the session."""
    return {name: family.write(tmp_path_factory.mktemp(name)) for name, family in FAMILIES.items()}


@pytest.fixture
def broken(folders: dict[str, Path], tmp_path: Path) -> Callable[[str], Path]:
    """Copies the checkpoint of a family, to be broken."""
    return lambda name: Path(shutil.copytree(folders[name], tmp_path / name))
