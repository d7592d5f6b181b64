from __future__ import annotations

from pathlib import Path

import pytest

from support.trained import digits_run, minigrid_run


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory, gemma_path: Path) -> Path:
    """A run of texts, shared by the session."""
    return digits_run(tmp_path_factory.mktemp("digits"), gemma_path)


@pytest.fixture(scope="session")
def minigrid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of frames, shared by the session."""
    return minigrid_run(tmp_path_factory.mktemp("minigrid"))
