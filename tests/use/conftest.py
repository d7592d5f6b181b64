from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="module")
def model(gemma_path: Path) -> Any:
    """Both models of the small Gemma under random adapters, in eval mode."""
    from support.swirl import build, randomize  # late: the process that hands the tests out imports no library

    module = build(gemma_path, quantization=None)
    randomize(module)
    return module.eval()
