"""The console script, as a user types it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from tiny import gemma_folder

TESTS = Path(__file__).parent


def config(tmp_path, model_path, **changes):
    settings = {
        "seed_everything": 0,
        "trainer": {
            "accelerator": "cpu",
            "enable_progress_bar": False,
            "logger": {
                "class_path": "lightning.pytorch.loggers.TensorBoardLogger",
                "init_args": {"save_dir": str(tmp_path / "runs"), "name": "r", "version": ""},
            },
            "callbacks": [
                {"class_path": "swirl_lightning.callbacks.Results"},
                {
                    "class_path": "lightning.pytorch.callbacks.ModelCheckpoint",
                    "init_args": {"save_last": True, "save_top_k": -1, "every_n_train_steps": 1},
                },
            ],
        },
        "phase_switch": {"warmup_epochs": 1, "iterations": 1},
        "model": {
            "class_path": "swirl_lightning.SWIRL",
            "init_args": {
                "backbone": {
                    "class_path": "swirl_lightning.backbones.text.TextLLM",
                    "init_args": {
                        "model_name_or_path": str(model_path),
                        "dtype": "float32",
                        "max_state_tokens": 4,
                        "max_action_tokens": 5,
                    },
                },
                "grpo": {"group_size": 4},
                "lora": {"r": 4, "dropout": 0.1},
                "optim": {"warmup": {"lr": 1e-3}, "fwm": {"lr": 1e-3}, "idm": {"lr": 1e-3}},
            },
        },
        "data": {"class_path": "world.Digits", "init_args": {"size": 32, "batch_size": 8}},
    }
    for key, value in changes.items():
        at = settings
        *path, last = key.split("/")
        for part in path:
            at = at[part]
        at[last] = value
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def swirl(*args, check=True, **env):
    result = subprocess.run(
        [sys.executable, "-m", "swirl_lightning.cli", *map(str, args)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(TESTS), "OMP_NUM_THREADS": "1", **env},
        timeout=400,
    )
    if check:
        assert result.returncode == 0, result.stderr[-3000:]
    return result


@pytest.fixture(scope="module")
def finished(tmp_path_factory, gemma_path):
    """A run left alone: 3 epochs of 4 steps, a checkpoint after every step."""
    folder = tmp_path_factory.mktemp("alone")
    swirl("fit", "-c", config(folder, gemma_path))
    return folder


def adapters(path):
    return torch.load(path, weights_only=True)["state_dict"]


def test_fit_writes_results_config_and_checkpoints(finished):
    run = finished / "runs" / "r"
    assert set(json.loads((run / "results.json").read_text())["validation"]) == {"SFT", "SWIRL iteration 1"}
    assert (run / "config.yaml").exists()
    assert (run / "checkpoints" / "last.ckpt").exists()


def test_a_killed_run_resumes_to_the_same_bits(finished, tmp_path, gemma_path):
    """SIGKILL in the middle of Phase I, then --ckpt_path last, with dropout on."""
    path = config(tmp_path, gemma_path)
    killed = swirl("fit", "-c", path, "--trainer.callbacks+=world.KillAt", "--trainer.callbacks.step=6", check=False)
    assert killed.returncode == -9
    last = torch.load(tmp_path / "runs" / "r" / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["global_step"] == 6
    assert last["swirl"]["label"] == "fwm 1 unfinished"
    resumed = swirl("fit", "-c", path, "--ckpt_path", "last")
    assert "Restor" in resumed.stderr + resumed.stdout
    alone = adapters(finished / "runs" / "r" / "checkpoints" / "last.ckpt")
    again = adapters(tmp_path / "runs" / "r" / "checkpoints" / "last.ckpt")
    assert alone.keys() == again.keys()
    assert all(torch.equal(alone[k], again[k]) for k in alone)


def test_test_adds_its_row_and_keeps_the_others(finished):
    path, run = finished / "config.yaml", finished / "runs" / "r"
    result = swirl("test", "-c", path, "--ckpt_path", run / "checkpoints" / "last.ckpt")
    results = json.loads((run / "results.json").read_text())
    assert set(results) == {"validation", "test", "about"}
    assert set(results["test"]) == {"SWIRL iteration 1"}
    assert "SWIRL iteration 1" in result.stdout
    assert yaml.safe_load((run / "config.yaml").read_text())["phase_switch"]["iterations"] == 1


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
def test_bad_input_is_one_clear_message_before_training(tmp_path, gemma_path, finished, changes, args, words):
    broken = tmp_path / "broken.ckpt"
    whole = (finished / "runs" / "r" / "checkpoints" / "last.ckpt").read_bytes()
    broken.write_bytes(whole[: len(whole) // 2])
    args = [arg.format(broken=broken) for arg in args]
    result = swirl("fit", "-c", config(tmp_path, gemma_path, **changes), *args, check=False, HF_HUB_OFFLINE="1")
    assert result.returncode != 0
    message = result.stderr.strip().splitlines()[-1] if "error:" not in result.stderr else result.stderr
    for word in words:
        assert word in message, result.stderr[-1500:]
    assert "Traceback" not in result.stderr
    assert not list((tmp_path / "runs").rglob("*.ckpt")) if (tmp_path / "runs").exists() else True


def test_a_checkpoint_of_another_base_is_refused(finished, tmp_path):
    other = gemma_folder(tmp_path / "other", seed=3)
    last = finished / "runs" / "r" / "checkpoints" / "last.ckpt"
    result = swirl("test", "-c", config(tmp_path, other), "--ckpt_path", last, check=False)
    assert result.returncode != 0
    assert "trained on base" in result.stderr
    assert "Traceback" not in result.stderr
