"""Fits on CPU; every rank writes its adapters after every epoch. Run by tests/test_ddp.py."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, seed_everything
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

from support.swirl import CONSTANT, SGD, build, randomize, snapshot
from support.trainers import quiet_trainer
from support.world import Digits
from swirl_lightning import GRPOConfig
from swirl_lightning.callbacks import PhaseSwitch


class Write(Callback):
    """Adapters after each epoch; the metrics of each step; what a step reduced: gradients, and other tensors."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.reduced, self.wrapped, self.counted = folder, {}, None, Counter()
        self.metrics = {}
        self.all_reduce = dist.all_reduce

    def on_fit_start(self, trainer, pl_module):
        dist.all_reduce = self._counting

    def _counting(self, *args, **options):
        self.counted["other tensors"] += 1
        return self.all_reduce(*args, **options)

    def _hook(self, group, bucket):
        self.counted["gradients"] += bucket.buffer().numel()
        self.counted["other tensors"] -= 1  # of allreduce_hook
        return allreduce_hook(group, bucket)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        model = trainer.strategy.model
        if isinstance(model, DistributedDataParallel) and model is not self.wrapped:
            model.register_comm_hook(None, self._hook)
            self.wrapped = model
        if batch_idx == 0:
            self.counted.clear()

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.reduced[pl_module.phase.name] = dict(self.counted)
        if trainer.global_step:
            found = trainer.callback_metrics.items()
            self.metrics |= {f"{trainer.global_step}/{k}": float(v) for k, v in found if "val/" not in k}

    def on_train_epoch_end(self, trainer, pl_module):
        name = f"{trainer.current_epoch}-{pl_module.phase.name}-{trainer.global_rank}"
        torch.save(snapshot(pl_module), self.folder / f"{name}.pt")

    def on_fit_end(self, trainer, pl_module):
        dist.all_reduce = self.all_reduce
        told = {"reduced": self.reduced, "metrics": self.metrics}
        (self.folder / f"fit-{trainer.global_rank}.json").write_text(json.dumps(told))


def main(model: str, out: Path, devices: int, cases: list[str], nodes: int = 1) -> None:
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
        data = Digits(size=16, batch_size=int(batch_size), pairs_per_step=8, counterfactual_share=0.5)
        trainer = quiet_trainer(
            folder,
            PhaseSwitch(1, iterations=1),
            Write(folder),
            precision="64-true",  # so that rounding, which depends on the CPU and the batch, flips no sampled token
            devices=devices,
            num_nodes=nodes,
            strategy="ddp" if devices > 1 else "auto",
        )
        trainer.validate(module, data, verbose=False)
        values = {k: float(v) for k, v in trainer.callback_metrics.items()}
        (folder / f"metrics-{trainer.global_rank}.json").write_text(json.dumps(values))
        trainer.fit(module, data)
        (folder / "steps.txt").write_text(str(trainer.global_step))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4:])
