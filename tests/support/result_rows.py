"""A tested module whose row is added to a run's table under many names: ``python -m support.result_rows``."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from support.tiny import text_backbone
from support.trainers import quiet_trainer
from support.world import Digits
from swirl_lightning import SWIRL
from swirl_lightning.callbacks import Results
from swirl_lightning.evaluation import EvaluationConfig


def main(folder: str, base: str, name: str, count: str) -> None:
    """Add a row, wait for the file ``go``, and add the other rows as fast as it goes."""
    results = Results(f"{name}-0")
    backbone = text_backbone(base, max_state_tokens=4, max_action_tokens=5, quantization=None)
    module = SWIRL(backbone, evaluation=EvaluationConfig(modes=("greedy",)))
    trainer = quiet_trainer(Path(folder), results)
    trainer.test(module, Digits(size=2), verbose=False)
    (Path(folder) / f"ready-{name}").touch()
    while not (Path(folder) / "go").exists():
        time.sleep(0.01)
    for number in range(1, int(count)):
        results.row = f"{name}-{number}"
        results.on_test_end(trainer, module)


if __name__ == "__main__":
    main(*sys.argv[1:])
