from __future__ import annotations

from pathlib import Path

import pytest
import torch

from support.tiny import gemma_folder

torch.set_num_threads(1)  # small models: a second thread costs more than it gives


@pytest.fixture(scope="session")
def gemma_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Gemma on disk, shared by the session."""
    return gemma_folder(tmp_path_factory.mktemp("gemma"))
