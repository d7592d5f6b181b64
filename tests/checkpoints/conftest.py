from __future__ import annotations

import pytest

from support.cli import config, here


@pytest.fixture(scope="session")
def run(tmp_path_factory, gemma_path):
    """Two steps of a run, and its folder of checkpoints."""
    folder = tmp_path_factory.mktemp("run")
    here("fit", "-c", config(folder, gemma_path), "--trainer.max_steps", "2")
    return folder / "runs" / "r" / "checkpoints"
