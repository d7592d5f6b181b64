"""The console script, as a user types it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import constants

from support.cli import config, here, swirl
from support.tiny import gemma_folder

TESTS = Path(__file__).parent


@pytest.fixture
def refused(capsys):
    """What the command ends with instead of a traceback."""

    def run(*args):
        with pytest.raises(SystemExit) as end:
            here(*args)
        told = capsys.readouterr().err
        return told if isinstance(end.value.code, int) else f"{end.value.code}"

    return run


@pytest.fixture(scope="module")
def finished(tmp_path_factory, gemma_path):
    """A run left alone: 3 epochs of 4 steps, a checkpoint after every step."""
    folder = tmp_path_factory.mktemp("alone")
    here("fit", "-c", config(folder, gemma_path))
    return folder


def adapters(path):
    return torch.load(path, weights_only=True)["state_dict"]


def test_fit_writes_results_config_and_checkpoints(finished):
    run = finished / "runs" / "r"
    assert set(json.loads((run / "results.json").read_text())["validation"]) == {"SFT", "SWIRL iteration 1"}
    assert (run / "config.yaml").exists()
    assert (run / "checkpoints" / "last.ckpt").exists()


def test_a_second_run_in_the_same_folder_replaces_the_first(tmp_path, gemma_path):
    path, last = config(tmp_path, gemma_path), tmp_path / "runs" / "r" / "checkpoints" / "last.ckpt"
    here("fit", "-c", path, "--trainer.max_steps", "2")
    here("fit", "-c", path, "--trainer.max_steps", "1")
    assert torch.load(last, weights_only=True)["global_step"] == 1
    assert not list(last.parent.glob("*-v*"))


def test_a_killed_run_resumes_to_the_same_bits(finished, tmp_path, gemma_path):
    """SIGKILL in the middle of Phase I, then --ckpt_path last, with dropout on."""
    path = config(tmp_path, gemma_path)
    killed = swirl("fit", "-c", path, "--trainer.callbacks+=support.world.KillAt", "--trainer.callbacks.step=6")
    assert killed.returncode == -9
    last = torch.load(tmp_path / "runs" / "r" / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["global_step"] == 6
    assert last["swirl"]["label"] == "fwm 1 unfinished"
    resumed = swirl("fit", "-c", path, "--ckpt_path", "last")
    assert resumed.returncode == 0, resumed.stderr[-3000:]
    assert "Restor" in resumed.stderr + resumed.stdout
    alone = adapters(finished / "runs" / "r" / "checkpoints" / "last.ckpt")
    again = adapters(tmp_path / "runs" / "r" / "checkpoints" / "last.ckpt")
    assert alone.keys() == again.keys()
    assert all(torch.equal(alone[k], again[k]) for k in alone)


def test_test_adds_its_row_and_keeps_the_others(finished, capsys):
    path, run = finished / "config.yaml", finished / "runs" / "r"
    here("test", "-c", path, "--ckpt_path", run / "checkpoints" / "last.ckpt")
    results = json.loads((run / "results.json").read_text())
    assert set(results) == {"validation", "test", "about"}
    assert set(results["test"]) == {"SWIRL iteration 1"}
    assert "SWIRL iteration 1" in capsys.readouterr().out
    assert yaml.safe_load((run / "config.yaml").read_text())["phase_switch"]["iterations"] == 1


def test_predict_writes_every_row_and_generates_none_twice(finished):
    path, run = finished / "config.yaml", finished / "runs" / "r"
    written, sizes = run / "predictions" / "predict-rank0.jsonl", []
    for _ in range(2):
        here("predict", "-c", path, "--ckpt_path", run / "checkpoints" / "last.ckpt")
        rows = [json.loads(line) for line in written.read_text().splitlines()]
        assert sorted(row["id"] for row in rows) == sorted(f"test-{n}" for n in range(32))
        assert all(row["predicted_action"] is not None and row["predicted_state"] is not None for row in rows)
        sizes.append((run / "predictions" / "generated-rank0.jsonl").stat().st_size)
    assert sizes[0] == sizes[1]
    # longer actions may be generated: what is kept of shorter ones does not stand for them
    longer = ("--model.init_args.backbone.init_args.max_action_tokens", "6")
    here("predict", "-c", path, "--ckpt_path", run / "checkpoints" / "last.ckpt", *longer)
    assert (run / "predictions" / "generated-rank0.jsonl").stat().st_size > sizes[1]


@pytest.mark.parametrize(
    ("changes", "args", "words"),
    [
        ({"model/init_args/grpo/group_sizes": 3}, [], ["group_sizes"]),
        ({"model/init_args/grpo/group_size": 1}, [], ["group needs at least 2"]),
        ({"model/init_args/backbone/class_path": "swirl_lightning.backbones.Nothing"}, [], ["Nothing"]),
        ({"phase_switch/phases": ["fwm", "imd"]}, [], ["imd", "bootstrap"]),
        ({}, ["--ckpt_path", "nowhere.ckpt"], ["nowhere.ckpt", "does not exist"]),
        ({}, ["--ckpt_path", "{broken}"], ["cannot be read"]),
        ({"model/init_args/backbone/init_args/model_name_or_path": "builtin/none"}, [], ["builtin/none"]),
        ({"model/init_args/backbone/init_args/model_name_or_path": "./no/such/folder"}, [], ["no/such/folder"]),
    ],
    ids=["key", "value", "backbone", "phase", "missing ckpt", "corrupt ckpt", "builtin", "no model"],
)
def test_bad_input_is_one_clear_message_before_training(
    tmp_path, gemma_path, finished, refused, monkeypatch, changes, args, words
):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    broken = tmp_path / "broken.ckpt"
    whole = (finished / "runs" / "r" / "checkpoints" / "last.ckpt").read_bytes()
    broken.write_bytes(whole[: len(whole) // 2])
    args = [arg.format(broken=broken) for arg in args]
    message = refused("fit", "-c", config(tmp_path, gemma_path, **changes), *args)
    assert "error: " in message
    for word in words:
        assert word in message
    assert not list(tmp_path.rglob("last.ckpt"))


def test_a_checkpoint_of_another_base_is_refused(finished, refused, tmp_path):
    other = gemma_folder(tmp_path / "other", seed=3)
    last = finished / "runs" / "r" / "checkpoints" / "last.ckpt"
    assert "trained on base" in refused("test", "-c", config(tmp_path, other), "--ckpt_path", last)
