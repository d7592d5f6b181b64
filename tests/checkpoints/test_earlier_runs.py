"""What an earlier run has left in a folder is not written over, and the last checkpoint is found."""

from __future__ import annotations

import os
import shutil

import pytest
import yaml

from support.cli import config, here


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
    path = config(tmp_path, gemma_path, **{"data/init_args/size": 8})
    here("fit", "-c", path)
    folder = tmp_path / "runs" / "r" / "checkpoints"
    (folder / "last.ckpt").unlink()
    before = {p: p.read_bytes() for p in folder.iterdir()}
    assert before
    for command, copied in (("fit", False), ("test", False), ("test", True)):
        (folder / "last.ckpt").unlink(missing_ok=True)
        newest = max(before, key=lambda p: p.stat().st_mtime)
        for p in before if copied else ():
            os.utime(p, (1, 1))  # as a copy may leave them: the last by its name is the same one
        here(command, "-c", path, "--ckpt_path", "last")
        assert [w for w in recwarn if f"there is no last.ckpt; the newest checkpoint is {newest}" in str(w.message)]
        recwarn.clear()
        assert {p: p.read_bytes() for p in before} == before


@pytest.mark.parametrize(
    ("args", "gone"), [((), ()), (("--ckpt_path", "last"), ()), ((), ("sft", "swirl-iteration-1"))]
)
def test_a_new_run_keeps_off_exports_whose_checkpoints_are_gone(tmp_path, gemma_path, request, args, gone):
    path = config(tmp_path, gemma_path, **{"data/init_args/size": 8})
    here("fit", "-c", path)
    folder = tmp_path / "runs" / "r"
    shutil.rmtree(folder / "checkpoints")
    for name in gone:
        shutil.rmtree(folder / "adapters" / name)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    line = request.getfixturevalue("refused")("fit", "-c", path, *args)
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
