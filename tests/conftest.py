from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import pytest


def pytest_configure(config: pytest.Config) -> None:
    """Prepare the libraries where tests run: all wait for the process that hands them out, which needs none."""
    if config.getoption("numprocesses", None) and not hasattr(config, "workerinput"):
        return
    import torch

    from swirl_lightning.engine.quantization import import_bitsandbytes

    import_bitsandbytes()  # before tests that import parts of it
    torch.set_num_threads(1)  # small models: a second thread costs more than it gives


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the tests of whole commands first, which take longest, so that no process waits for another at the end."""
    items.sort(key=lambda item: item.path.parent != Path(__file__).parent)
    gc.freeze()  # what has been imported stays: to look through it takes a third of a second each time


@pytest.fixture(scope="session", autouse=True)
def unsynced() -> Iterator[None]:
    """What is written reaches the disk when the system likes: a short run would wait 60 times, and no power is cut."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        yield


@pytest.fixture(autouse=True)
def alone() -> Iterator[None]:
    """No test leaves ranks behind: neither their variables, which processes inherit, nor a process group."""
    import torch.distributed as dist

    before = dict(os.environ)
    yield
    if dist.is_initialized():
        dist.destroy_process_group()
    for name in set(os.environ) - set(before):
        del os.environ[name]
    os.environ.update(before)


@pytest.fixture(scope="session")
def gemma_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Gemma of one layer on disk, shared by the session."""
    from support.tiny import gemma_folder

    return gemma_folder(tmp_path_factory.mktemp("gemma"))


@pytest.fixture(scope="session")
def deep_gemma_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One of two layers, for what the first hands to the next."""
    from support.tiny import gemma_folder

    return gemma_folder(tmp_path_factory.mktemp("deep-gemma"), layers=2)


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory, gemma_path: Path) -> Path:
    """A run of texts, shared by the session."""
    from support.trained import digits_run

    return digits_run(tmp_path_factory.mktemp("digits"), gemma_path)


@pytest.fixture(scope="session")
def minigrid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of frames, shared by the session."""
    from support.trained import minigrid_run

    return minigrid_run(tmp_path_factory.mktemp("minigrid"))
