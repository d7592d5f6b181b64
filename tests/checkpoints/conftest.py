from __future__ import annotations

import shutil

import pytest

from support.cli import config, here


@pytest.fixture(scope="session")
def run(tmp_path_factory, gemma_path):
    """Two steps of a run, and its folder of checkpoints."""
    folder = tmp_path_factory.mktemp("run")
    here("fit", "-c", config(folder, gemma_path), "--trainer.max_steps", "2")
    return folder / "runs" / "r" / "checkpoints"


@pytest.fixture
def copied(run, tmp_path, gemma_path):
    """A folder of the same layout whose last.ckpt may be spoilt, and its configuration."""
    folder = tmp_path / "runs" / "r" / "checkpoints"
    folder.mkdir(parents=True)
    shutil.copy(run / "last.ckpt", folder / "last.ckpt")
    shutil.copy(run / "last.ckpt", folder / "older.ckpt")
    return config(tmp_path, gemma_path), folder / "last.ckpt"


@pytest.fixture
def refused(capsys, monkeypatch):
    """The one line that a command ends with; it loads no base."""

    def no_base(self):
        raise AssertionError("the base was loaded first")

    from swirl_lightning.backbones.text import TextLLM  # late: the process that hands the tests out imports no library

    monkeypatch.setattr(TextLLM, "load_model", no_base)

    def ended(*args):
        with pytest.raises(SystemExit) as end:
            here(*args)
        (line,) = str(end.value.code).splitlines()
        assert line.startswith("error: ")
        return line

    return ended
