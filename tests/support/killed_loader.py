"""A run whose workers wait when it is killed. Run by tests/data/test_loader.py."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection

from swirl_lightning.data import TransitionLoader
from swirl_lightning.transition import Transition


class Large(Sequence[Transition]):
    """Records that no pipe holds: a worker waits until somebody reads. Each has one end of another pipe."""

    def __init__(self, pipe: Connection) -> None:
        self.pipe = pipe

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index):
        return Transition("x" * 1_000_000, "y", "go", id=str(index))


def feed(pipe: Connection, method: str) -> None:
    """Take three batches, say how many workers there are, and wait to be killed."""
    multiprocessing.set_start_method(method, force=True)
    multiprocessing.set_forkserver_preload([__name__])  # instead of once in each worker
    batches = iter(TransitionLoader(Large(pipe), batch_size=1, num_workers=2))
    given = [row.id for _ in range(3) for row in next(batches).transitions]
    assert given == ["0", "1", "2"]
    pipe.send(len(multiprocessing.active_children()))
    time.sleep(1000)
