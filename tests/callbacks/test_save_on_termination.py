"""What SLURM's signal before a job's end does: the run is saved where it can go on, and the job requeued."""

from __future__ import annotations

import os

import pytest
import torch

from support.cli import config, here


@pytest.fixture
def job(monkeypatch, tmp_path):
    """A job of one process; what ``scontrol`` is asked for is in the file that is returned."""
    given = {"JOB_ID": 18, "JOB_NAME": "swirl", "ARRAY_JOB_ID": 17, "ARRAY_TASK_ID": 3, "NTASKS": 1, "PROCID": 0}
    for name, value in (given | {"LOCALID": 0, "NODEID": 0}).items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    asked, command = tmp_path / "asked", tmp_path / "bin" / "scontrol"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\necho "$@" >> {asked}\n')
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{command.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)  # where Lightning's own handler would save
    return asked


def run(path, *options):
    kill = ["--trainer.callbacks+=support.world.KillAt", "--trainer.callbacks.step=2"]
    with pytest.raises(SystemExit) as end:
        here("fit", "-c", path, "--ckpt_path", "last", *kill, "--trainer.callbacks.name=SIGUSR1", *options)
    assert end.value.code == 128 + 15


def test_a_job_is_requeued_when_the_batch_is_over(job, tmp_path, gemma_path):
    path, last = config(tmp_path, gemma_path), tmp_path / "runs" / "r" / "checkpoints" / "last.ckpt"
    run(path)
    assert job.read_text() == "requeue 17_3\n"
    assert torch.load(last, weights_only=True)["global_step"] == 3
    assert not list(tmp_path.glob("hpc*"))


@pytest.mark.parametrize("how", ["fails", "missing"])
def test_a_job_that_slurm_does_not_requeue_is_told_of(job, tmp_path, gemma_path, monkeypatch, how):
    monkeypatch.delenv("SLURM_ARRAY_JOB_ID")
    if how == "missing":
        monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "bin" / "scontrol").write_text("#!/bin/sh\necho it is held >&2\nexit 1\n")
    told = "it is held" if how == "fails" else "No such file"
    with pytest.warns(UserWarning, match=rf"SLURM has not requeued job 18 \(.*{told}.*\): start it again yourself"):
        run(config(tmp_path, gemma_path))
    assert (tmp_path / "runs" / "r" / "checkpoints" / "last.ckpt").is_file()
