"""Two ranks, resumed between the two updates of their rollouts. Run by tests/test_resume.py."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from lightning.pytorch import seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint

from support.swirl import build, snapshot, trainer
from support.world import Digits
from swirl_lightning import GRPOConfig
from swirl_lightning.callbacks import PhaseSwitch


def main(model: str, out: Path, name: str) -> None:
    """One run a process: a second one would have to listen on the same port again."""
    torch.set_num_threads(1)
    seed_everything(0)
    module = build(model, quantization=None, grpo=GRPOConfig(group_size=4, num_iterations=2))
    save = ModelCheckpoint(out, filename="{step}", save_top_k=-1, every_n_train_steps=1, enable_version_counter=False)
    fit = trainer(out, PhaseSwitch(0, ["fwm"], 1), [save], devices=2, strategy="ddp")
    fit.fit(module, Digits(size=16, batch_size=4), ckpt_path=out / "step=1.ckpt" if name == "resumed" else None)
    assert fit.global_step == 4
    torch.save(snapshot(module), out / f"{name}-{fit.global_rank}.pt")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3])
