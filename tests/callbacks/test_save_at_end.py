"""``last.ckpt`` at the end of a training whose last epoch is not validated, and so not saved by Lightning."""

from __future__ import annotations

import signal
from contextlib import nullcontext

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException

from support.cli import config, here
from support.swirl import build, equal, trainer
from support.world import Digits
from swirl_lightning.callbacks import PhaseSwitch, SaveAtEnd, SaveOnTermination


def ended_at_once():
    """As if the signal had come before the first batch ends."""
    callback = SaveOnTermination()
    callback._asked = signal.SIGTERM
    return callback


def last(folder):
    return torch.load(folder / "runs" / "r" / "checkpoints" / "last.ckpt", weights_only=True)


@pytest.fixture
def run(tmp_path, gemma_path):
    def fit(name, *options):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        path = folder / "config.yaml"
        if not path.exists():
            path = config(folder, gemma_path, **{"trainer/callbacks": [], "data/init_args/size": 8})
        here("fit", "-c", path, "--trainer.check_val_every_n_epoch", "2", *options)
        return last(folder)

    return fit


def test_the_end_is_saved_and_goes_on_as_if_never_stopped(run, tmp_path):
    """Three epochs, of which the second one is validated; then two more."""
    ended = run("short")
    assert ended["swirl"]["label"] == "SWIRL iteration 1"
    again = run("short", "--ckpt_path", "last")
    assert again["global_step"] == ended["global_step"]
    assert equal(again["state_dict"], ended["state_dict"])
    longer = run("short", "--ckpt_path", "last", "--phase_switch.iterations", "2")
    alone = run("long", "--phase_switch.iterations", "2")
    assert longer["global_step"] == alone["global_step"] > ended["global_step"]
    assert equal(longer["state_dict"], alone["state_dict"])


@pytest.mark.parametrize("callback", [SaveAtEnd(), ended_at_once()], ids=["to its end", "by a signal"])
def test_a_development_run_leaves_the_last_checkpoint_of_a_real_one_alone(gemma_path, tmp_path, callback):
    keeper = ModelCheckpoint(tmp_path, save_last=True)
    (tmp_path / "last.ckpt").write_bytes(b"a real run's")
    fit = trainer(tmp_path, PhaseSwitch(1, iterations=0), [keeper, callback], fast_dev_run=True)
    with pytest.raises(SIGTERMException) if isinstance(callback, SaveOnTermination) else nullcontext():
        fit.fit(build(gemma_path), Digits(size=16, batch_size=8))
    assert (tmp_path / "last.ckpt").read_bytes() == b"a real run's"


@pytest.mark.parametrize(
    ("options", "written"),
    [
        (["--trainer.check_val_every_n_epoch", "1"], False),
        (["--trainer.check_val_every_n_epoch", "1", "--trainer.limit_val_batches", "0"], False),
        (["--trainer.check_val_every_n_epoch", "3"], False),
        (["--trainer.check_val_every_n_epoch", "2"], True),
    ],
)
def test_an_end_that_lightning_has_saved_is_left_alone(run, tmp_path, monkeypatch, options, written):
    extra = tmp_path / "extra.ckpt"
    monkeypatch.setattr("swirl_lightning.callbacks.save_at_end.place_of_last", lambda trainer: extra)
    run("run", "--phase_switch.warmup_epochs", "3", "--phase_switch.iterations", "0", *options)
    assert extra.exists() == written
