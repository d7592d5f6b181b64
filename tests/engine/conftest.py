from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def gemma_path(deep_gemma_path: Path) -> Path:
    """In place of the one of one layer."""
    return deep_gemma_path
