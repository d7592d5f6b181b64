"""All callbacks at once in two processes, each of which leaves what it validated."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback

from support.runs import Data, Model, trainer
from swirl_lightning.callbacks import ActionTable, AdapterExport, CollapseWatch, HyperparameterText, Throughput


class Report(Callback):
    """Leaves what each rank saw."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        torch.save(pl_module.evaluated, self.folder / f"{trainer.global_rank}.pt")


def main(folder: Path, rows: int) -> None:
    """Train on ``rows`` rows."""
    callbacks = [ActionTable(), AdapterExport(), CollapseWatch(), HyperparameterText(), Throughput(), Report(folder)]
    trainer(folder, callbacks, strategy="ddp", devices=2).fit(Model(), Data(batch_size=2, rows=rows))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
