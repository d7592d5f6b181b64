"""The lock of a run's folder."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from filelock import FileLock

from support.cli import config, here
from swirl_lightning.callbacks import FitLock


@pytest.mark.parametrize("args", [(), ("--ckpt_path", "last")])
def test_two_fits_are_not_under_way_in_one_folder(tmp_path, gemma_path, monkeypatch, args):
    """As of a job that is queued again while the first one still runs, be it before its first checkpoint."""
    path = config(tmp_path, gemma_path)
    monkeypatch.setattr("swirl_lightning.callbacks.fit_lock.WAIT_S", 0.0)
    folder = tmp_path / "runs" / "r"
    folder.mkdir(parents=True)
    with FileLock(folder / "fit.lock"), pytest.raises(SystemExit) as end:
        here("fit", "-c", path, *args)
    assert str(end.value.code).startswith(f"error: another fit is under way in {folder}: ")
    assert not (folder / "config.yaml").exists()


def test_where_there_are_no_locks_a_warning_says_so(tmp_path, monkeypatch):
    def refused(self, timeout):
        raise NotImplementedError("FileSystem does not appear to support flock")

    monkeypatch.setattr(FileLock, "acquire", refused)
    run = SimpleNamespace(log_dir=str(tmp_path), is_global_zero=True, fast_dev_run=False)
    lock = FitLock()
    with pytest.warns(UserWarning, match=r"fit\.lock cannot be locked .*see that no second fit writes to this folder"):
        lock.setup(run, None, "fit")
    lock.teardown(run, None, "fit")
