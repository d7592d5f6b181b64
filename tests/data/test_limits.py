"""Limits of the Trainer that leave nothing of an epoch, refused before the model loads."""

from __future__ import annotations

import pytest

from support.tiny import text_backbone
from support.trainers import quiet_trainer
from support.world import Digits
from swirl_lightning import SWIRL
from swirl_lightning.callbacks import PhaseSwitch


class Loads(Exception):
    """The base would be loaded now."""


class Module(SWIRL):
    def configure_model(self):
        raise Loads


def run(command, folder, gemma, **options):
    """14 labelled rows and as many pairs in batches of 1 and of 2, 2 batches of each evaluated split."""

    class Rows(Digits):
        def load_split(self, split):
            return super().load_split(split)[: 4 if split in ("validation", "test") else 14]

    trainer = quiet_trainer(folder, PhaseSwitch(iterations=1), max_epochs=-1, **options)
    data = Rows(size=14, batch_size=2, warmup_batch_size=1, eval_batch_size=2)
    getattr(trainer, command)(Module(text_backbone(gemma)), data)


@pytest.mark.parametrize(
    ("command", "options", "told"),
    [
        ("fit", {"val_check_interval": 8}, "val_check_interval 8 is more than the 7 batches in an epoch .* 'fwm'"),
        (
            "fit",
            {"val_check_interval": 8, "check_val_every_n_epoch": 2},
            "val_check_interval 8 is more than the 7 batches",
        ),
        ("fit", {"limit_train_batches": 0.1}, "limit_train_batches 0.1 leaves none of the 7 batches .* 'fwm'"),
        ("fit", {"limit_val_batches": 0.4}, "limit_val_batches 0.4 leaves none of the 2 batches in the split 'valid"),
        ("validate", {"limit_val_batches": 0.4}, "limit_val_batches 0.4 leaves none of the 2 batches"),
        (
            "test",
            {"limit_test_batches": 0.4},
            "limit_test_batches 0.4 leaves none of the 2 batches in the split 'test'",
        ),
        ("predict", {"limit_predict_batches": 0.4}, "limit_predict_batches 0.4 leaves none of the 2 batches"),
    ],
)
def test_what_leaves_nothing_is_refused(command, options, told, tmp_path, gemma_path):
    with pytest.raises(ValueError, match=rf"trainer\.{told}"):
        run(command, tmp_path, gemma_path, **options)


@pytest.mark.parametrize(
    ("command", "options"),
    [
        ("fit", {"val_check_interval": 7}),
        ("fit", {"val_check_interval": 8, "limit_val_batches": 0}),
        ("fit", {"val_check_interval": 8, "check_val_every_n_epoch": None}),
        ("fit", {"limit_train_batches": 0.15}),
        ("fit", {"limit_train_batches": 0}),
        ("fit", {"fast_dev_run": True}),
        ("fit", {"limit_val_batches": 0.5}),
        ("test", {"limit_test_batches": 0}),
    ],
)
def test_what_leaves_something_or_was_meant_to_leave_nothing_is_taken(command, options, tmp_path, gemma_path):
    try:
        run(command, tmp_path, gemma_path, **options)
    except Loads:
        return
    assert 0 in options.values()  # Lightning does nothing then


@pytest.mark.parametrize(("interval", "phases"), [(0.5, ["fwm"]), (3, ["warmup", "fwm"]), (1.0, []), (7, [])])
def test_an_interval_that_leaves_out_the_end_of_an_epoch_is_told(interval, phases, tmp_path, gemma_path, recwarn):
    """Of 14 and of 7 batches. Nothing else said that such a run ends without a row in results.json."""
    with pytest.raises(Loads):
        run("fit", tmp_path, gemma_path, val_check_interval=interval)
    told = [str(w.message) for w in recwarn if "gives no validation at its end" in str(w.message)]
    assert {name for name in ("warmup", "fwm", "idm") if any(repr(name) in one for one in told)} == {
        *phases,
        *(["idm"] if phases else []),
    }


@pytest.mark.parametrize(
    "options",
    [
        {"check_val_every_n_epoch": 2},
        {"check_val_every_n_epoch": None, "val_check_interval": 3},
        {"val_check_interval": "00:00:00:01"},
    ],
)
def test_validation_that_leaves_out_phases_is_told(options, tmp_path, gemma_path):
    with pytest.warns(UserWarning, match="no row of those"), pytest.raises(Loads):
        run("fit", tmp_path, gemma_path, **options)
