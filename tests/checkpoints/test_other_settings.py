"""Runs that go on with other settings, or from another place: what was done stays told as it was."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
import yaml

from support.cli import config, here
from support.small_disk import room_for


def test_a_finished_run_makes_up_for_an_export_it_was_killed_in(run, tmp_path, gemma_path):
    shutil.copytree(run.parents[1], tmp_path / "runs")
    export, described = (tmp_path / "runs" / "r" / name for name in ("adapters/last", "config.yaml"))
    shutil.rmtree(export)
    before = described.read_bytes()
    here(
        "fit",
        "-c",
        config(tmp_path, gemma_path),
        "--ckpt_path",
        "last",
        "--trainer.max_steps",
        "2",
        "--seed_everything",
        "5",
    )
    assert {"fwm", "idm"} <= {p.name for p in export.iterdir()}
    assert described.read_bytes() == before  # the weights have not seen the other seed
    # a run that trains on is another matter: the settings of both parts are kept
    on = ("fit", "-c", config(tmp_path, gemma_path), "--ckpt_path", "last", "--trainer.max_steps")
    with pytest.warns(UserWarning, match=r"other settings than before: those are kept as .*config_until_step_2\.yaml"):
        here(*on, "3", "--trainer.gradient_clip_val", "0.5")
    assert described.with_name("config_until_step_2.yaml").read_bytes() == before
    assert yaml.safe_load(described.read_text())["trainer"]["gradient_clip_val"] == 0.5
    here(*on, "3")  # nothing is left to train
    assert sorted(path.name for path in described.parent.glob("config*")) == ["config.yaml", "config_until_step_2.yaml"]


def test_a_finished_run_resumed_with_other_settings_keeps_its_export(run, tmp_path, gemma_path):
    shutil.copytree(run.parents[1], tmp_path / "runs")
    export = tmp_path / "runs" / "r" / "adapters" / "last"
    before = {path: path.read_bytes() for path in export.rglob("*") if path.is_file()}
    other = (
        "--model.init_args.templates.fwm",
        "{before} then {action}",
        "--model.init_args.sampling.temperature",
        "0.3",
    )
    here("fit", "-c", config(tmp_path, gemma_path), "--ckpt_path", "last", "--trainer.max_steps", "2", *other)
    assert {path: path.read_bytes() for path in export.rglob("*") if path.is_file()} == before


def test_so_does_one_whose_last_checkpoint_is_of_its_last_step(tmp_path, gemma_path):
    """Its last epoch is validated anew, and nothing is trained."""
    here("fit", "-c", config(tmp_path, gemma_path, **{"phase_switch/iterations": 0}))
    last, described = (tmp_path / "runs" / "r" / name for name in ("checkpoints/last.ckpt", "config.yaml"))
    before, step = described.read_bytes(), torch.load(last, weights_only=True)["global_step"]
    again = config(tmp_path, gemma_path, **{"phase_switch/iterations": 0})
    here("fit", "-c", again, "--ckpt_path", "last", "--model.sampling.temperature", "0.3")
    assert torch.load(last, weights_only=True)["global_step"] == step
    assert described.read_bytes() == before
    assert [path.name for path in described.parent.glob("config*")] == ["config.yaml"]


def test_a_run_that_was_moved_goes_on_with_its_settings(run, tmp_path, gemma_path):
    moved = shutil.copytree(run.parent, tmp_path / "moved")
    described = moved / "config.yaml"
    settings = yaml.safe_load(described.read_text())
    settings["trainer"] |= {"max_steps": 3, "logger": None, "default_root_dir": str(tmp_path / "before")}
    described.write_text(yaml.safe_dump(settings))
    here("fit", "-c", described, "--trainer.default_root_dir", moved, "--ckpt_path", "last")
    assert yaml.safe_load(described.read_text())["trainer"]["default_root_dir"] == str(moved)
    assert [path.name for path in moved.glob("config*")] == ["config.yaml"]


def test_a_configuration_cut_short_is_no_obstacle_to_a_resume(run, tmp_path, gemma_path):
    shutil.copytree(run.parents[1], tmp_path / "runs")
    described = tmp_path / "runs" / "r" / "config.yaml"
    described.write_text("model: {class_path: 'swirl_lightn")
    with pytest.warns(UserWarning, match="config_until_step_2"):
        here("fit", "-c", config(tmp_path, gemma_path), "--ckpt_path", "last", "--trainer.max_steps", "3")
    assert yaml.safe_load(described.read_text())["model"]


def test_a_full_disk_cuts_no_configuration(run, tmp_path, gemma_path, capsys):
    shutil.copytree(run.parents[1], tmp_path / "runs")
    described = tmp_path / "runs" / "r" / "config.yaml"
    before = described.read_bytes()
    on = ("--ckpt_path", "last", "--trainer.max_steps", "3", "--trainer.gradient_clip_val", "0.5")
    alone = ("--trainer.logger", "false", "--trainer.default_root_dir", described.parent)  # no other file is written
    with room_for(len(before) // 2), pytest.raises(SystemExit) as end:
        here("fit", "-c", config(tmp_path, gemma_path), *on, *alone)
    assert "config_until_step_2.yaml" in str(end.value.code)
    assert [path.read_bytes() for path in described.parent.glob("*config*")] == [before]


def test_after_the_warm_up_its_file_is_not_read(tmp_path, gemma_path):
    """The labels of a large corpus would be decoded at every start, and nothing of them used."""
    files = {}
    for name in ("warmup", "state_only"):
        rows = [{"before": str(n), "after": str(n + 1), "action": "add"} for n in range(8)]
        files[name] = tmp_path / f"{name}.jsonl"
        files[name].write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = {name: str(path) for name, path in files.items()}
    data = {"class_path": "swirl_lightning.data.JSONLTransitions", "init_args": given | {"batch_size": 8}}
    path = config(tmp_path, gemma_path, data=data, **{"trainer/limit_val_batches": 0})
    here("fit", "-c", path, "--trainer.max_epochs", "1")
    files["warmup"].unlink()
    going_on = ("fit", "-c", path, "--ckpt_path", "last")
    with pytest.raises(SystemExit, match=r"error: .*warmup\.jsonl"):
        here(*going_on, "--data.labelled_per_batch", "2")
    here(*going_on)
    last = torch.load(tmp_path / "runs" / "r" / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["swirl"]["label"] == "SWIRL iteration 1"
