"""Fit with validation, test and predict on few rows. Run by tests/test_ddp.py."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from lightning.pytorch import seed_everything

from support.swirl import SGD, build, randomize, trainer
from support.world import Digits
from swirl_lightning import OptimConfig, PhaseOptimConfig
from swirl_lightning.callbacks import PhaseSwitch, Results, RowScores
from swirl_lightning.callbacks.predictions import Predictions

STILL = PhaseOptimConfig(*[OptimConfig(1e-30)] * 3)  # so that the weights are the same on any number of devices


class Few(Digits):
    """Some rows to evaluate."""

    def __init__(self, rows: int, **kwargs) -> None:
        super().__init__(**kwargs)
        self.rows = rows

    def load_split(self, split):
        rows = super().load_split(split)
        return rows[: self.rows] if split in ("validation", "test") else rows


def main(model: str, out: Path, devices: int, cases: list[str]) -> None:
    torch.set_num_threads(1)
    for case in cases:
        rows, batch_size = map(int, case.split("x"))
        seed_everything(0)
        module = build(model, quantization=None, optimizer=SGD, optim=STILL)
        randomize(module)
        data = Few(rows, size=12, batch_size=6 // devices, eval_batch_size=batch_size)
        run = trainer(
            out / case,
            PhaseSwitch(1, iterations=0),
            [Results(), Predictions(), RowScores()],
            devices=devices,
            strategy="ddp" if devices > 1 else "auto",
            limit_val_batches=None,
        )
        run.fit(module, data)
        values = {key: float(value) for key, value in run.callback_metrics.items() if key.startswith("val/")}
        run.test(module, data, verbose=False)
        values |= {key: float(value) for key, value in run.callback_metrics.items() if key.startswith("test/")}
        run.predict(module, data)
        (out / case / f"metrics-{run.global_rank}.json").write_text(json.dumps(values))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4:])
