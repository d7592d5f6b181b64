"""One fit on CPU; every rank writes its adapters after every epoch. Run by tests/test_ddp.py."""

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


def main(model: str, out: str, devices: int, batch_size: int, scale: str) -> None:
    torch.set_num_threads(1)
    seed_everything(0)
    grpo = GRPOConfig(group_size=4, advantage_scale=scale)
    module = build(model, quantization=None, anchor_weight=0.3, optimizer=SGD, optim=CONSTANT, grpo=grpo)
    randomize(module)
    data = Digits(size=24, batch_size=batch_size, pairs_per_step=8)
    trainer = quiet_trainer(
        Path(out),
        PhaseSwitch(1, iterations=2),
        Write(Path(out)),
        precision="64-true",  # so that rounding, which depends on the CPU and the batch, flips no sampled token
        devices=devices,
        strategy="ddp" if devices > 1 else "auto",
    )
    trainer.validate(module, data, verbose=False)
    values = {k: float(v) for k, v in trainer.callback_metrics.items()}
    (Path(out) / f"metrics-{trainer.global_rank}.json").write_text(json.dumps(values))
    trainer.fit(module, data)
    (Path(out) / "steps.txt").write_text(str(trainer.global_step))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:5]), sys.argv[5])
