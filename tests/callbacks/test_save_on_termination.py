"""What Ctrl+C, and SLURM's signal before a job's end, do: the run is saved where it can go on, and a job requeued."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from multiprocessing.connection import Connection
from select import select

import pytest
import torch
from lightning.pytorch.utilities.exceptions import SIGTERMException

from support.cli import config, here
from support.processes import CONTEXT, SECONDS
from support.unread import STARTS, begin, begin_logged
from swirl_lightning.callbacks import SaveOnTermination
from swirl_lightning.console.run import run_command


@pytest.mark.parametrize("pressed", [1, 2])
def test_control_c_saves_at_the_next_batch_and_pressed_twice_ends_at_once(tmp_path, gemma_path, capfd, pressed):
    path, last = config(tmp_path, gemma_path), tmp_path / "runs" / "r" / "checkpoints" / "last.ckpt"
    press = ["--trainer.callbacks+=support.world.KillAt", "--trainer.callbacks.step=2"] * pressed
    names = ["--trainer.callbacks.name=SIGINT"]
    options = [*press[:2], *names, *press[2:], *names * (pressed - 1)]
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(SystemExit) as end:
        here("fit", "-c", path, *options, "--ckpt_path", "last")
    assert "Ctrl+C again ends at once" in capfd.readouterr().err
    assert (torch.load(last, weights_only=True)["global_step"] == 3) == (pressed == 1)
    assert end.value.code == 128 + 2
    assert signal.getsignal(signal.SIGINT) is handler


@pytest.mark.skipif(not hasattr(os, "login_tty"), reason="this system has no terminals")
@pytest.mark.parametrize("how", STARTS)
def test_a_closed_terminal_saves_at_the_next_batch_unless_that_is_ignored(tmp_path, gemma_path, how):
    """With a progress bar, whose next line has no place to go to: with the terminal its ``| tee`` has gone."""
    path, folder, ignored = config(tmp_path, gemma_path), tmp_path / "runs" / "r" / "checkpoints", how == "ignored"
    command = ["fit", "-c", path, "--trainer.enable_progress_bar", "true", "--phase_switch.iterations", "0"]
    command += ["--phase_switch.warmup_epochs", "2" if ignored else "100"]
    (terminal, end), said, (read, out) = os.openpty(), b"", CONTEXT.Pipe(duplex=False)
    running = begin(command, out, Connection(end), how)
    out.close()
    place = read.fileno() if how == "pipe" else terminal
    while running.is_alive() and not list(folder.glob("*.ckpt")):
        with suppress(OSError):  # it has ended
            said += os.read(place, 10_000) if select([place], [], [], 0.1)[0] else b""
    os.close(terminal)
    read.close()
    running.join(SECONDS)
    running.kill()  # if it has not ended
    assert list(folder.glob("*.ckpt")), said
    step = torch.load(folder / "last.ckpt", weights_only=True)["global_step"]
    assert (running.exitcode, step == 4) == ((0, True) if ignored else (128 + signal.SIGHUP, False))


@pytest.mark.parametrize("workers", ["0", "2"])
def test_a_run_whose_output_nobody_reads_any_more_saves_at_the_next_batch(tmp_path, gemma_path, workers):
    path, folder = config(tmp_path, gemma_path), tmp_path / "runs" / "r" / "checkpoints"
    command = ["fit", "-c", path, "--data.init_args.num_workers", workers]
    command += ["--trainer.enable_progress_bar", "true", "--phase_switch.warmup_epochs", "100"]
    log, (read, out) = tmp_path / "log", CONTEXT.Pipe(duplex=False)
    running = begin_logged(command, out, log)
    out.close()
    while os.read(read.fileno(), 10_000) and not list(folder.glob("*.ckpt")):
        pass
    read.close()
    running.join(SECONDS)
    running.kill()  # if it has not ended
    assert list(folder.glob("*.ckpt")), log.read_text()
    assert running.exitcode == 128 + signal.SIGPIPE
    assert "asked to end: saved" in log.read_text(), "stderr has a reader"
    kept = {file.name: torch.load(file, weights_only=True)["global_step"] for file in folder.glob("*.ckpt")}
    assert kept.pop("last.ckpt") >= max(kept.values())


def test_control_c_that_ends_the_reader_of_a_pipe_too_says_the_exit_code():
    for first in (True, False):
        callback = SaveOnTermination()
        callback._running = True
        asked = [callback._interrupt, lambda callback=callback: callback._ask(signal.SIGPIPE)]
        for ask in asked if first else reversed(asked):
            ask()
        assert callback._asked == signal.SIGINT
        handler = signal.getsignal(signal.SIGINT)
        with pytest.raises(SIGTERMException) as end:
            callback._interrupt()
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN  # a third time interrupts no shutdown
        signal.signal(signal.SIGINT, handler)
        assert end.value.code == 128 + 2


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


def test_a_checkpoint_that_lightning_would_take_under_slurm_is_refused(job, tmp_path, gemma_path):
    path = config(tmp_path, gemma_path)
    (tmp_path / "hpc_ckpt_1.ckpt").write_bytes(b"")
    with pytest.raises(SystemExit, match=r"hpc_ckpt_1\.ckpt: under SLURM, Lightning would go on from this file"):
        here("fit", "-c", path)
    (tmp_path / "hpc_ckpt_1.ckpt").unlink()
    with pytest.raises(SystemExit, match="hpc"):
        here("test", "-c", path, "--ckpt_path", "hpc")


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
