"""The lock of a run's folder."""

from __future__ import annotations

import errno
import fcntl
import os

import pytest
from filelock import FileLock

from support.cli import config, here


@pytest.mark.parametrize("args", [(), ("--ckpt_path", "last")])
def test_two_fits_are_not_under_way_in_one_folder(tmp_path, gemma_path, args):
    """As of a job that is queued again while the first one still runs, be it before its first checkpoint."""
    path = config(tmp_path, gemma_path)
    folder = tmp_path / "runs" / "r"
    folder.mkdir(parents=True)
    with FileLock(folder / "fit.lock"), pytest.raises(SystemExit) as end:
        here("fit", "-c", path, *args)
    assert str(end.value.code).startswith(f"error: another fit is under way in {folder}: ")
    assert not (folder / "config.yaml").exists()


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_run_on_a_file_system_without_locks_is_warned_and_goes_on(tmp_path, gemma_path, monkeypatch, code):
    """Also beside the files of a fit that was killed on another node."""

    def flock(fd, operation):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", flock)
    folder = tmp_path / "runs" / "r"
    folder.mkdir(parents=True)
    for name in ("fit.lock", "results.lock"):
        (folder / name).write_text("1\nanother\n")
    with pytest.warns(UserWarning, match=r"fit\.lock cannot be locked") as told:
        here("fit", "-c", config(tmp_path, gemma_path, **{"data/init_args/size": 8, "trainer/limit_val_batches": 1}))
    assert not [warning for warning in told if "SoftFileLock" in str(warning.message)]
    assert (folder / "results.json").is_file()
    assert (folder / "checkpoints" / "last.ckpt").is_file()
