"""What an earlier run has left in a folder is not written over, and the last checkpoint is found."""

from __future__ import annotations

import json
import math
import os
import shutil
import time

import pytest
import torch
import yaml
from lightning.pytorch.loggers.logger import DummyLogger

from support.cli import config, here, longer_config
from swirl_lightning import SWIRL
from swirl_lightning.checkpoints.finding import find_checkpoint

# whose steps are the cheapest, where their number alone matters
WARM_UP = {
    "phase_switch": {"warmup_epochs": 3, "iterations": 0},
    "trainer/limit_val_batches": 0,
    "trainer/limit_test_batches": 1,
}


def test_a_new_run_does_not_write_over_another(copied, refused):
    path, last = copied
    before = last.read_bytes()
    line = refused("fit", "-c", path)
    assert f"{last} is of an earlier run" in line
    assert "--ckpt_path last" in line
    assert last.read_bytes() == before


def test_nor_does_one_that_begins_with_a_checkpoint_of_a_third(copied, tmp_path, refused):
    """A warm-up's, say: the same command given again would begin anew, over what the first one has trained."""
    path, last = copied
    warm = tmp_path / "warm" / "last.ckpt"
    warm.parent.mkdir()
    shutil.copy(last, warm)
    before = last.read_bytes()
    line = refused("fit", "-c", path, "--ckpt_path", warm)
    assert f"{last} is of an earlier run" in line
    assert "--ckpt_path last" in line
    assert last.read_bytes() == before


def test_without_last_a_run_goes_on_from_the_newest_checkpoint(tmp_path, gemma_path, recwarn):
    """Where the last one was damaged and has been removed: it began anew, over all that was there."""
    path = config(tmp_path, gemma_path, **WARM_UP, **{"data/init_args/size": 8})
    here("fit", "-c", path)
    folder = tmp_path / "runs" / "r" / "checkpoints"
    (folder / "last.ckpt").unlink()
    before = {p: p.read_bytes() for p in folder.iterdir()}
    assert before
    for command, copied in (("fit", False), ("test", True)):
        (folder / "last.ckpt").unlink(missing_ok=True)
        newest = max(before, key=lambda p: p.stat().st_mtime)
        for p in before if copied else ():
            os.utime(p, (1, 1))  # as a copy may leave them: the last by its name is the same one
        here(command, "-c", path, "--ckpt_path", "last")
        assert [w for w in recwarn if f"the newest checkpoint is {newest}" in str(w.message)]
        recwarn.clear()
        assert {p: p.read_bytes() for p in before} == before


@pytest.fixture(scope="module")
def exported(tmp_path_factory, gemma_path):
    """A finished run, a step of each phase."""
    folder = tmp_path_factory.mktemp("exported")
    here("fit", "-c", config(folder, gemma_path, **{"data/init_args/size": 8}))
    return folder / "runs"


@pytest.mark.parametrize(
    ("args", "gone"), [((), ()), (("--ckpt_path", "last"), ()), ((), ("sft", "swirl-iteration-1"))]
)
def test_a_new_run_keeps_off_exports_whose_checkpoints_are_gone(exported, tmp_path, gemma_path, refused, args, gone):
    path = config(tmp_path, gemma_path, **{"data/init_args/size": 8})
    shutil.copytree(exported, tmp_path / "runs")
    folder = tmp_path / "runs" / "r"
    shutil.rmtree(folder / "checkpoints")
    for name in gone:
        shutil.rmtree(folder / "adapters" / name)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    line = refused("fit", "-c", path, *args)
    assert f"{folder / 'adapters'}" in line
    assert "is of an earlier run, and this one would write over it: give another" in line
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize("left", ["checkpoints", "results"])
def test_a_new_run_keeps_off_what_another_left_without_last(tmp_path, gemma_path, request, left):
    keeper = {"save_top_k": -1, "filename": "{epoch}", "enable_version_counter": False}
    path = config(tmp_path, gemma_path, **{"data/init_args/size": 8, "trainer/limit_val_batches": 1})
    settings = yaml.safe_load(path.read_text())
    settings["trainer"]["callbacks"][1]["init_args"] = keeper
    if left == "results":
        del settings["trainer"]["callbacks"][1]
        settings["trainer"]["enable_checkpointing"] = False
    path.write_text(yaml.safe_dump(settings))
    here("fit", "-c", path, "--phase_switch.iterations", "0")
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    line = request.getfixturevalue("refused")("fit", "-c", path)  # only now: that one loads no base
    assert ("epoch=0.ckpt" if left == "checkpoints" else "adapters/last") + " is of an earlier run" in line
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


def test_a_folder_in_which_something_was_measured_alone_is_free(tmp_path, gemma_path):
    path = config(tmp_path, gemma_path, **{"data/init_args/size": 8, "trainer/limit_val_batches": 1})
    for command in ("validate", "test"):
        here(command, "-c", path)
    here("fit", "-c", path, "--phase_switch.iterations", "0")


def step(path):
    return torch.load(path, weights_only=True)["global_step"]


@pytest.mark.parametrize("save_last", [None, True])
def test_what_a_signal_saved_is_not_the_last_one_for_ever(tmp_path, gemma_path, recwarn, save_last):
    """Where the run itself writes no last.ckpt, or one of another name."""
    own = {"save_top_k": -1, "save_last": save_last}
    own = [{"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": own}]
    path = longer_config(tmp_path, gemma_path, **WARM_UP, **{"trainer/callbacks": own})
    run = tmp_path / "runs" / "r"
    kill = ["--trainer.callbacks+=support.world.KillAt", "--trainer.callbacks.step=5"]
    with pytest.raises(SystemExit):
        here("fit", "-c", path, *kill, "--trainer.callbacks.name=SIGTERM")
    assert step(find_checkpoint(run)) == 6
    here("fit", "-c", path, "--ckpt_path", "last")
    found = find_checkpoint(run)
    assert step(found) == 12
    assert step(run / "checkpoints" / "last.ckpt") == (12 if found.name == "last.ckpt" else 6)
    for times in ((1, 1), (2, 1), (1, 2)):  # those of a copy
        for copied in (run / "checkpoints").iterdir():
            os.utime(copied, (times[copied.name == "last.ckpt"],) * 2)
        assert step(find_checkpoint(run)) == 12
    recwarn.clear()
    here("test", "-c", path, "--ckpt_path", "last")
    assert list(json.loads((run / "results.json").read_text())["test"]) == ["SFT"]


def test_a_checkpoint_that_says_no_time_has_that_of_its_file_and_is_older_than_all_that_do(copied, tmp_path):
    folder = copied[1].parent
    (folder / "last.ckpt").rename(folder / "a.ckpt")
    times = {"a": 10.0, "b": None, "c": "now", "d": math.inf, "e": math.nan}
    state = torch.load(folder / "a.ckpt", weights_only=True)
    for path in folder.iterdir():
        if path.stem not in times:
            path.unlink()
    for n, (name, written) in enumerate(times.items()):
        state["swirl"]["written"] = written
        torch.save(state, folder / f"{name}.ckpt")
        os.utime(folder / f"{name}.ckpt", (100 - n,) * 2)
    (folder / "._a.ckpt").write_bytes(b"left by another system")
    for name in times:
        assert find_checkpoint(tmp_path).stem == name
        (folder / f"{name}.ckpt").unlink()


def test_of_equal_times_the_highest_number_counts_and_last_most(copied, tmp_path):
    folder = copied[1].parent
    for name in ("epoch=9", "epoch=10"):
        shutil.copy(folder / "last.ckpt", folder / f"{name}.ckpt")
    assert find_checkpoint(tmp_path).name == "last.ckpt"
    (folder / "last.ckpt").unlink()
    assert find_checkpoint(tmp_path).name == "epoch=10.ckpt"


def test_a_run_goes_on_from_the_last_one_that_has_more_than_weights(tmp_path, gemma_path):
    keeper = "lightning.pytorch.callbacks.ModelCheckpoint"
    weights = {"save_weights_only": True, "filename": "weights", "every_n_train_steps": 5}
    keepers = [{"class_path": keeper, "init_args": args} for args in ({"every_n_train_steps": 4}, weights)]
    path, run = config(tmp_path, gemma_path, **WARM_UP, **{"trainer/callbacks": keepers}), tmp_path / "runs" / "r"
    here("fit", "-c", path, "--trainer.max_steps", "5")
    assert step(find_checkpoint(run)) == 5
    here("fit", "-c", path, "--ckpt_path", "last", "--trainer.max_steps", "6")
    assert {step(found) for found in run.glob("checkpoints/*")} == {4, 5}


def test_the_name_of_a_metric_in_that_of_a_checkpoint_makes_folders(tmp_path, gemma_path):
    named = {"monitor": "val/fwm/log_prob", "filename": "{step}-{val/fwm/log_prob:.3f}", "save_top_k": -1}
    keepers = [{"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": named}]
    changes = {"trainer/callbacks": keepers, "data/init_args/size": 8}
    path, run = config(tmp_path, gemma_path, **changes), tmp_path / "runs" / "r"
    options = ["-c", path, "--phase_switch.iterations", "0", "--phase_switch.warmup_epochs"]
    here("fit", *options, "1")
    (found,) = run.glob("checkpoints/step=1-val/fwm/log_prob=*.ckpt")
    with pytest.raises(SystemExit, match="is of an earlier run"):
        here("fit", *options, "2")
    here("fit", *options, "2", "--ckpt_path", found)
    here("fit", *options, "3", "--ckpt_path", "last")
    assert sorted(step(found) for found in run.rglob("*.ckpt")) == [1, 2, 3]


def test_no_run_writes_to_another_machine(tmp_path, gemma_path):
    keepers = [{"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": {"dirpath": "memory://run"}}]
    with pytest.raises(SystemExit, match="checkpoints would go to memory://run: give a folder of this machine"):
        here("fit", "-c", config(tmp_path, gemma_path, **{"trainer/callbacks": keepers}))


def test_one_that_cannot_be_read_is_found_if_it_is_the_newest(copied, tmp_path):
    last = copied[1]
    last.write_bytes(last.read_bytes()[:1000])
    assert find_checkpoint(tmp_path) == last


def test_a_clock_that_is_put_back_makes_no_later_checkpoint_an_earlier_one(tmp_path, gemma_path, monkeypatch):
    path, run = longer_config(tmp_path, gemma_path, **WARM_UP), tmp_path / "runs" / "r"
    with monkeypatch.context() as ahead:
        ahead.setattr(time, "time", lambda real=time.time: real() + 3600)
        here("fit", "-c", path, "--trainer.max_steps", "3")
    here("fit", "-c", path, "--trainer.max_steps", "5", "--ckpt_path", "last")
    assert find_checkpoint(run).name == "last.ckpt"
    assert step(find_checkpoint(run)) == 5


def test_a_folder_of_checkpoints_may_be_a_link(copied, tmp_path):
    folder, elsewhere = copied[1].parent, tmp_path / "elsewhere"
    folder.rename(elsewhere)
    folder.symlink_to(elsewhere)
    (folder.parent / "itself").symlink_to(folder.parent)
    assert find_checkpoint(folder.parent) == folder / "last.ckpt"


def test_a_logger_that_numbers_its_folders_hides_no_checkpoint(tmp_path, gemma_path, recwarn):
    path = longer_config(tmp_path, gemma_path, **WARM_UP, **{"trainer/callbacks": []})
    settings = yaml.safe_load(path.read_text())
    settings["trainer"]["logger"] = "CSVLogger"
    path.write_text(yaml.safe_dump(settings))
    folders = [tmp_path / "logs" / "lightning_logs" / f"version_{n}" / "checkpoints" for n in range(2)]
    args = ["-c", path, "--trainer.logger.save_dir", tmp_path / "logs"]
    here("fit", *args, "--trainer.max_steps", "6")
    here("fit", *args, "--ckpt_path", "last")
    assert [w for w in recwarn if f"the newest checkpoint is {folders[0]}" in str(w.message)]
    assert [step(find_checkpoint(folder)) for folder in folders] == [6, 12]
    left = folders[0] / "last.ckpt"  # as a signal has a run write it
    next(folders[0].iterdir()).rename(left)
    os.utime(left)
    assert step(find_checkpoint(tmp_path / "logs")) == 12
    here("test", *args, "--ckpt_path", "last")
    assert [w for w in recwarn if f"the newest checkpoint is {folders[1]}" in str(w.message)]
    here("fit", *args, "--trainer.max_steps", "1")  # another run
    assert (tmp_path / "logs" / "lightning_logs" / "version_3").is_dir()


class Project(DummyLogger):
    """Has a name and a version, as many have, and keeps checkpoints in folders of these names."""

    save_dir, name, version = "elsewhere", "project", "id"


@pytest.mark.parametrize("logger", ["test_earlier_runs.Project", "TensorBoardLogger"])
def test_checkpoints_lie_beside_the_configuration_whatever_the_logger(
    tmp_path, gemma_path, monkeypatch, caplog, logger
):
    """Lightning asks the logger for other things than its log_dir."""
    monkeypatch.chdir(tmp_path)
    path = longer_config(tmp_path, gemma_path, **WARM_UP, **{"trainer/callbacks": []})
    settings = yaml.safe_load(path.read_text())
    sub_dir = {"save_dir": "runs", "name": "", "version": "", "sub_dir": "tb"}
    settings["trainer"]["logger"] = {"class_path": logger, "init_args": {} if "." in logger else sub_dir}
    settings["trainer"]["default_root_dir"] = "runs"
    path.write_text(yaml.safe_dump(settings))
    here("fit", "-c", path, "--trainer.max_steps", "6")
    with pytest.raises(SystemExit, match="is of an earlier run"):
        here("fit", "-c", path)
    here("fit", "-c", path, "--ckpt_path", "last")
    folder = tmp_path / "runs" / ("" if "." in logger else "tb")
    assert "so the training begins" not in caplog.text
    assert step(folder / "checkpoints" / "last.ckpt") == 12
    assert SWIRL.load_from_checkpoint(folder / "checkpoints" / "last.ckpt").label == "SFT"
