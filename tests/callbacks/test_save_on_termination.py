"""What Ctrl+C, and SLURM's signal before a job's end, do: the run is saved where it can go on, and a job requeued."""

from __future__ import annotations

import os
import signal

import pytest
import torch

from support.cli import config, here
from swirl_lightning.console.run import run_command


@pytest.mark.parametrize("pressed", [1, 2])
def test_control_c_saves_at_the_next_batch_and_pressed_twice_ends_at_once(tmp_path, gemma_path, caplog, pressed):
    path, last = config(tmp_path, gemma_path), tmp_path / "runs" / "r" / "checkpoints" / "last.ckpt"
    press = ["--trainer.callbacks+=support.world.KillAt", "--trainer.callbacks.step=2"] * pressed
    names = ["--trainer.callbacks.name=SIGINT"]
    options = [*press[:2], *names, *press[2:], *names * (pressed - 1)]
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(SystemExit) as end:
        here("fit", "-c", path, *options, "--ckpt_path", "last")
    assert "Ctrl+C again ends at once" in caplog.text
    assert (torch.load(last, weights_only=True)["global_step"] == 3) == (pressed == 1)
    assert end.value.code == (128 + 2 if pressed == 1 else 1)  # 1 is Lightning's
    assert signal.getsignal(signal.SIGINT) is handler


def test_control_c_outside_of_a_training_is_one_word(capsys):
    def main():
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as end:
        run_command(main)
    assert end.value.code == 128 + 2
    assert capsys.readouterr().err == "interrupted\n"


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
