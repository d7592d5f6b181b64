"""Fits on CPU; every rank writes its adapters after every epoch. Run by tests/test_ddp.py."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from lightning.pytorch import Callback, seed_everything

from support.swirl import CONSTANT, SGD, build, randomize, snapshot
from support.trainers import quiet_trainer
from support.world import Digits
from swirl_lightning import GRPOConfig
from swirl_lightning.callbacks import PhaseSwitch


class Write(Callback):
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_epoch_end(self, trainer, pl_module):
        name = f"{trainer.current_epoch}-{pl_module.phase.name}-{trainer.global_rank}"
        torch.save(snapshot(pl_module), self.folder / f"{name}.pt")


def main(model: str, out: Path, devices: int, cases: list[str]) -> None:
    """Each case is a batch size and a scale of advantages, such as ``4-group``, with a folder of that name."""
    torch.set_num_threads(1)
    for case in cases:
        batch_size, scale = case.split("-")
        folder = out / case
        folder.mkdir(parents=True, exist_ok=True)
        seed_everything(0)
        grpo = GRPOConfig(group_size=4, advantage_scale=scale)
        module = build(model, quantization=None, anchor_weight=0.3, optimizer=SGD, optim=CONSTANT, grpo=grpo)
        randomize(module)
        data = Digits(size=16, batch_size=int(batch_size), pairs_per_step=8)
        trainer = quiet_trainer(
            folder,
            PhaseSwitch(1, iterations=1),
            Write(folder),
            precision="64-true",  # so that rounding, which depends on the CPU and the batch, flips no sampled token
            devices=devices,
            strategy="ddp" if devices > 1 else "auto",
        )
        trainer.validate(module, data, verbose=False)
        values = {k: float(v) for k, v in trainer.callback_metrics.items()}
        (folder / f"metrics-{trainer.global_rank}.json").write_text(json.dumps(values))
        trainer.fit(module, data)
        (folder / "steps.txt").write_text(str(trainer.global_step))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4:])
