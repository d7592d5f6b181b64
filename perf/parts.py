"""Parts of a run told to the process that started it, and the small base and pairs of such a run: see `perf.soak`."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from perf.common import CASES, SPECIALS, Ids, small
from swirl_lightning.callbacks import AdapterExport, Results
from swirl_lightning.checkpoints.file import WholeCheckpoints
from swirl_lightning.data import TransitionDataModule
from swirl_lightning.transition import Transition

PIPE = "SOAK_PIPE"
"""Environment variable with the number of the file descriptor that parts are written to."""

CASE = small(CASES["text"])

_open = ["start"]


def tell(part: str) -> None:
    """Say that a part has begun."""
    os.write(int(os.environ[PIPE]), f"{part}\n".encode())


@contextmanager
def inside(part: str) -> Iterator[None]:
    """Say that a part has begun, and at its end that the one around it goes on."""
    _open.append(part)
    tell(part)
    yield
    _open.pop()
    tell(_open[-1])


class Phases(Callback):
    """Tells phases and validations."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Tell the phase, at each batch."""
        _open[:] = [str(pl_module.phase.name)]
        tell(_open[0])

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Tell that the validation has begun."""
        _open[:] = ["validation"]
        tell("validation")


class Checkpoints(WholeCheckpoints):
    """Tells when a checkpoint is written."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Tell and write."""
        with inside("checkpoint"):
            super().save_checkpoint(checkpoint, path, storage_options)


class Export(AdapterExport):
    """Tells when adapters are exported."""

    def _export(self, trainer: Trainer, pl_module: Any, label: str) -> None:
        with inside("export"):
            super()._export(trainer, pl_module, label)


class Table(Results):
    """Tells when ``results.json`` is written."""

    def _add(self, trainer: Trainer, pl_module: Any, split: str, prefix: str, label: str) -> None:
        with inside("results"):
            super()._add(trainer, pl_module, split, prefix, label)


class Base(Ids):
    """The base that `perf.common.build_base` wrote to a folder."""

    def __init__(self, folder: str) -> None:
        super().__init__(CASE, Path(folder))


class Triples(TransitionDataModule):
    """Random triples of ids."""

    def __init__(self, rows: int = 18, **options: Any) -> None:
        super().__init__(**options)
        self.rows = rows

    def load_split(self, split: str) -> list[Transition]:
        """Make the rows of a split, the same at every call."""
        draw = random.Random(split)

        def ids(length: int) -> str:
            return " ".join(str(draw.randrange(SPECIALS, CASE.vocabulary)) for _ in range(length))

        count = 2 if split == "validation" else self.rows
        return [
            Transition(ids(CASE.before), ids(CASE.completion), ids(CASE.action), id=f"{split}-{n}")
            for n in range(count)
        ]
