"""Checkpoints as files: replaced whole, and refused in one line before any base is loaded."""

from __future__ import annotations

import json
import os
import pickle
import re
import zipfile

import pytest
import torch
import yaml

from support.cli import config, here
from support.small_disk import room_for
from swirl_lightning.callbacks import PhaseSwitch
from swirl_lightning.checkpoints.file import WholeCheckpoints, check_file
from swirl_lightning.cli import swirl_cli


def without(*keys):
    """Take a part out of a checkpoint."""

    def spoil(path):
        state = torch.load(path, weights_only=True)
        at = state
        for key in keys[:-1]:
            at = at[key]
        del at[keys[-1]]
        torch.save(state, path)

    return spoil


def having(value, *keys):
    """Put something else into a checkpoint."""

    def spoil(path):
        state = torch.load(path, weights_only=True)
        at = state
        for key in keys[:-1]:
            at = at[key]
        at[keys[-1]] = value
        torch.save(state, path)

    return spoil


BATCHES = ("loops", "fit_loop", "epoch_loop.batch_progress")
STEPPED = ("loops", "fit_loop", "epoch_loop.state_dict", "_batches_that_stepped")


def cut(path):
    path.write_bytes(path.read_bytes()[:-1000])


def pickled(path):
    path.write_bytes(pickle.dumps({"state_dict": {}}))


def empty(path):
    path.write_bytes(b"")


def flipped(path):
    """One bit of one weight."""
    with zipfile.ZipFile(path) as file:
        largest = max(file.infolist(), key=lambda part: part.file_size)
        data = file.read(largest)
    content = bytearray(path.read_bytes())
    at = content.index(data) + len(data) // 2
    content[at] ^= 1
    path.write_bytes(content)


def weights_only(path):
    state = torch.load(path, weights_only=True)
    for key in ("optimizer_states", "lr_schedulers", "callbacks"):
        del state[key]
    torch.save(state, path)


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (cut, "cannot be read"),
        (pickled, "cannot be read"),
        (empty, "cannot be read"),
        (flipped, "is damaged: the checksum of"),
        (weights_only, "holds weights alone"),
        (without("swirl"), "has no 'swirl' entry"),
        (without("swirl", "base"), "swirl.base is missing"),
        (without("swirl", "rng"), "swirl.rng is missing"),
        (without("swirl", "base", "weights"), "swirl.base.weights is missing"),
        (without("state_dict"), "state_dict is missing"),
        (without("optimizer_states"), "optimizer_states is missing"),
        (without("pytorch-lightning_version"), "pytorch-lightning_version is missing"),
        (
            having({"max_state_tokens": "4"}, "swirl", "lengths"),
            "length max_state_tokens is no number of tokens but '4'",
        ),
        (having("x", "pytorch-lightning_version"), "pytorch-lightning_version 'x' is no version"),
        (having(3, "swirl"), "swirl.base is missing"),
        (having("", "swirl", "tokens_seen"), "swirl.tokens_seen is missing or no int"),
        (having("a", *BATCHES, "current", "ready"), "epoch_loop.batch_progress.current holds what is no count"),
        (having(-1, *BATCHES, "total", "ready"), "epoch_loop.batch_progress.total holds what is no count"),
        (having(1, *BATCHES, "is_last_batch"), "is_last_batch is missing or no bool"),
        (having(5, "callbacks", "PhaseSwitch"), "callbacks.PhaseSwitch is missing or no dict"),
        (having("x", *STEPPED), "epoch_loop.state_dict._batches_that_stepped is missing or no int"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_checkpoint_that_cannot_serve_is_one_line(copied, spoil, told):
    _, last = copied
    spoil(last)
    with pytest.raises(ValueError, match=re.escape(told)) as raised:
        check_file(last, resume=True)
    (line,) = str(raised.value).splitlines()
    assert str(last) in line
    assert "older.ckpt" in line  # which one to take instead


@pytest.mark.parametrize(
    ("spoil", "given", "told"),
    [
        (cut, None, "cannot be read"),  # a path, or its name
        (flipped, "last", "is damaged: the checksum of"),
        (weights_only, "last", "holds weights alone"),
        (without("swirl"), "last", "has no 'swirl' entry"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_the_command_says_so_before_the_base(copied, refused, spoil, given, told):
    path, last = copied
    spoil(last)
    line = refused("fit", "-c", path, "--ckpt_path", given or last)
    assert told in line
    assert str(last) in line
    assert "older.ckpt" in line


@pytest.mark.parametrize(
    ("spoil", "options", "told"),
    [
        (
            having(3, "loops", "fit_loop", "epoch_progress", "current", "processed"),
            ("--phase_switch.iterations", "0"),
            "has done 3 epochs, and phase_switch.iterations ends it after 1: raise it, or test the checkpoint as it is",
        ),
        (
            having("fwm", "loops", "fit_loop", "epoch_progress", "current", "processed"),
            (),
            "epoch_progress.current holds what is no count",
        ),
        (lambda path: None, ("--phase_switch.warmup_epochs", "0"), "set phase_switch.warmup_epochs (there 1)"),
        (having(None, "callbacks", "PhaseSwitch", "phases"), (), "the checkpoint's schedule of phases is damaged"),
        (without("loops", "fit_loop"), (), "the number of epochs in the checkpoint cannot be restored"),
    ],
)
def test_a_checkpoint_of_another_schedule_is_one_line_before_the_base(
    copied, refused, spoil, options, told, monkeypatch
):
    monkeypatch.setattr("swirl_lightning.backbones.text.TextLLM.load_model", None)
    path, last = copied
    spoil(last)
    assert told in refused("fit", "-c", path, "--ckpt_path", "last", *options)


@pytest.mark.parametrize(
    "spoil",
    [
        having(-1, "callbacks", "PhaseSwitch", "warmup_epochs"),
        having("x", "callbacks", "PhaseSwitch", "begun"),
        without("callbacks", "PhaseSwitch", "iterations"),
    ],
)
def test_each_part_of_a_schedule_is_checked(copied, spoil):
    _, last = copied
    spoil(last)
    with pytest.raises(ValueError, match="the checkpoint's schedule of phases is damaged"):
        PhaseSwitch(1, iterations=1).check_resume(torch.load(last, weights_only=True))


@pytest.mark.parametrize(
    ("command", "value"),
    [("fit", float("nan")), ("test", float("inf")), ("predict", float("nan")), ("fit", 1)],
)
def test_weights_that_are_no_finite_numbers_are_refused(copied, command, value):
    path, last = copied
    state = torch.load(last, weights_only=True)
    name, tensor = next(iter(state["state_dict"].items()))
    state["state_dict"][name] = torch.full_like(tensor, value) if value != 1 else tensor.long()
    torch.save(state, last)
    with pytest.raises(SystemExit, match=f"1 of .* hold other values than finite numbers, such as {name}") as end:
        here(command, "-c", path, "--ckpt_path", "last")
    assert len(end.value.code.splitlines()) == 1


def test_weights_alone_can_be_tested(copied):
    path, last = copied
    tested = []
    for change in (lambda _: None, weights_only):
        change(last)
        here("test", "-c", path, "--ckpt_path", "last")
        results = last.parents[1] / "results.json"
        tested.append(json.loads(results.read_text())["test"])
        results.unlink()
    assert tested[0] == tested[1] != {}


def test_every_bit_of_what_is_stored_counts(copied):
    _, last = copied
    whole = last.read_bytes()
    with zipfile.ZipFile(last) as file:
        parts = [file.read(part) for part in file.infolist() if part.file_size]
    for data in parts[:: max(1, len(parts) // 12)]:
        content = bytearray(whole)
        content[content.index(data)] ^= 128
        last.write_bytes(content)
        with pytest.raises(ValueError, match=r"is damaged|cannot be read"):
            check_file(last)


def test_another_optimiser_is_refused(copied, capsys):
    path, _ = copied
    settings = yaml.safe_load(path.read_text())
    settings["model"]["init_args"]["optimizer"] = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1}}
    path.write_text(yaml.safe_dump(settings))
    with pytest.raises(SystemExit) as end:
        here("fit", "-c", path, "--ckpt_path", "last")
    assert end.value.code == (
        "error: the checkpoint's optimiser is AdamW, and it is SGD here: set model.optimizer to the former"
    )


def test_nothing_is_taken_from_a_registry(tmp_path, gemma_path, refused):
    """Lightning would ask its own for a name that is no path."""
    line = refused("fit", "-c", config(tmp_path, gemma_path), "--ckpt_path", "registry")
    assert "checkpoint registry does not exist" in line


@pytest.mark.parametrize("command", ["test", "predict", "validate"])
def test_last_where_there_is_none_is_refused_but_in_fit(tmp_path, gemma_path, refused, command):
    line = refused(command, "-c", config(tmp_path, gemma_path), "--ckpt_path", "last")
    assert "--ckpt_path last: there is none in" in line


def test_predictions_of_an_untrained_base_are_called_so(tmp_path, gemma_path, recwarn):
    here("predict", "-c", config(tmp_path, gemma_path))
    assert [w for w in recwarn if "the predictions are those of the base alone" in str(w.message)]


# ---- writing ---------------------------------------------------------------------------------------


def test_the_command_writes_checkpoints_whole(tmp_path):
    model = ("--model", "swirl_lightning.SWIRL", "--model.backbone", "swirl_lightning.backbones.Liquid")
    args = [*model, "--data", "support.world.Digits", "--trainer.default_root_dir", str(tmp_path)]
    assert isinstance(swirl_cli(args, run=False).trainer.strategy.checkpoint_io, WholeCheckpoints)


def test_what_stood_there_stays_until_the_new_file_is_on_the_disk(tmp_path, monkeypatch):
    path, done = tmp_path / "last.ckpt", []
    sync, replace = os.fsync, os.replace
    monkeypatch.setenv("TMPDIR", "/no/such/folder")  # nothing is written elsewhere
    monkeypatch.setattr(os, "fsync", lambda handle: (done.append("sync"), sync(handle)))
    monkeypatch.setattr(os, "replace", lambda *paths: (done.append("replace"), replace(*paths)))
    io = WholeCheckpoints()
    io.save_checkpoint({"step": 1}, path)
    assert done == ["sync", "replace", "sync"]  # the content, the name, the folder

    class Broken:
        def __reduce__(self):
            raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        io.save_checkpoint({"step": 2, "more": Broken()}, path)
    assert torch.load(path, weights_only=True) == {"step": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]
    io.save_checkpoint({"step": 3}, path)
    assert torch.load(path, weights_only=True) == {"step": 3}


@pytest.mark.parametrize("room", [0, 3_000, 300_000])
def test_a_full_disk_is_told_with_the_path(tmp_path, room):
    """torch itself raises RuntimeError, of positions in the file, where less than a part of it fits."""
    path, io = tmp_path / "last.ckpt", WholeCheckpoints()
    io.save_checkpoint({"step": 1}, path)
    told = r"^checkpoint .*last\.ckpt cannot be written \(.*too large\)"
    with room_for(room), pytest.raises(OSError, match=told):
        io.save_checkpoint({"step": 2, "tensors": [torch.zeros(5_000) for _ in range(40)]}, path)
    assert torch.load(path, weights_only=True) == {"step": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]
