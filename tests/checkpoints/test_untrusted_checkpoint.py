"""A checkpoint gives weights alone: none of its settings, code or paths is used."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
import yaml
from lightning.pytorch.callbacks import ModelCheckpoint

from support.cli import config, here
from support.swirl import build, trainer
from support.world import Digits
from swirl_lightning.benchmarks.aurora import Aurora
from swirl_lightning.callbacks import PhaseSwitch

CODE = """
from pathlib import Path

from transformers import GemmaConfig, GemmaForCausalLM

Path({marker!r}).write_text("foreign code has run")


class Config(GemmaConfig):
    pass


class Model(GemmaForCausalLM):
    config_class = Config
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory, gemma_path):
    """One step of a run, and its checkpoint."""
    folder = tmp_path_factory.mktemp("trained")
    path = config(folder, gemma_path)
    here("fit", "-c", path, "--trainer.max_steps", "1")
    return path, folder / "runs" / "r" / "checkpoints" / "last.ckpt"


@pytest.fixture
def planted(trained, gemma_path, tmp_path):
    """The same weights with hyperparameters that name a base of another folder, with code of its own."""
    evil, marker = tmp_path / "evil", tmp_path / "marker"
    shutil.copytree(gemma_path, evil)
    (evil / "foreign.py").write_text(CODE.format(marker=str(marker)))
    settings = json.loads((evil / "config.json").read_text())
    settings["auto_map"] = {"AutoConfig": "foreign.Config", "AutoModelForCausalLM": "foreign.Model"}
    settings["model_type"] = "foreign"
    (evil / "config.json").write_text(json.dumps(settings))
    hparams = yaml.safe_load(trained[0].read_text())["model"]["init_args"]
    hparams["backbone"]["init_args"] |= {"model_name_or_path": str(evil), "trust_remote_code": True}
    checkpoint = torch.load(trained[1], weights_only=True)
    checkpoint["hyper_parameters"] = {
        "_class_path": "swirl_lightning.SWIRL",
        "_instantiator": "lightning.pytorch.cli.instantiate_module",
        **hparams,
    }
    path = tmp_path / "planted.ckpt"
    torch.save(checkpoint, path)
    torch.load(path, weights_only=True)  # as harmless as a file can look
    return path, marker


@pytest.mark.parametrize(("command", "explicit"), [("test", False), ("test", True), ("fit", True)])
def test_planted_hyperparameters_run_no_code_and_change_no_setting(planted, tmp_path, gemma_path, command, explicit):
    path, marker = planted
    args = ["--model.init_args.backbone.init_args.trust_remote_code", "false"] if explicit else []
    try:
        here(command, "-c", config(tmp_path, gemma_path), "--ckpt_path", path, *args)
    finally:
        assert not marker.exists()
    name = "config.yaml" if command == "fit" else "config_test.yaml"
    used = yaml.safe_load((tmp_path / "runs" / "r" / name).read_text())["model"]["init_args"]["backbone"]["init_args"]
    assert used["model_name_or_path"] == str(gemma_path)
    assert used["trust_remote_code"] is False


def test_no_data_module_is_built_from_a_checkpoint(trained, tmp_path, monkeypatch):
    """Lightning imports the classes that ``datamodule_hyper_parameters`` name."""
    (tmp_path / "foreign_judge.py").write_text(f"open({str(tmp_path / 'marker')!r}, 'w').close()\nclass J: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    checkpoint = torch.load(trained[1], weights_only=True)
    checkpoint["datamodule_hyper_parameters"] = {
        "_class_path": "swirl_lightning.benchmarks.aurora.Aurora",
        "_instantiator": "lightning.pytorch.cli.instantiate_module",
        "judge": {"class_path": "foreign_judge.J"},
    }
    torch.save(checkpoint, tmp_path / "planted.ckpt")
    with pytest.raises(TypeError, match="build Aurora with its arguments"):
        Aurora.load_from_checkpoint(tmp_path / "planted.ckpt")
    here("test", "-c", trained[0], "--ckpt_path", tmp_path / "planted.ckpt")
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("key", ["best_model_path", "last_model_path"])
def test_no_file_outside_the_folder_of_checkpoints_is_deleted(gemma_path, tmp_path, key):
    """ModelCheckpoint removes what its saved state calls the checkpoint before, with all that is in it."""

    def fit(steps, resume=None):
        save = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=1, save_last=True)
        run = trainer(tmp_path, PhaseSwitch(1, iterations=0), [save], max_steps=steps)
        run.fit(build(gemma_path), Digits(), ckpt_path=resume)
        return save

    folder, precious = tmp_path / "checkpoints", tmp_path / "precious"
    precious.mkdir()
    save = fit(1)
    checkpoint = torch.load(folder / "last.ckpt", weights_only=True)
    checkpoint["callbacks"][save.state_key][key] = str(folder / ".." / "precious")
    torch.save(checkpoint, folder / "planted.ckpt")
    fit(2, folder / "planted.ckpt")
    assert precious.exists()
    # what a run wrote itself is still replaced
    assert sorted(path.name for path in folder.glob("step*")) == ["step=1.ckpt", "step=2.ckpt"]
    shutil.rmtree(folder)
    fit(1)
    fit(2, folder / "last.ckpt")
    assert [path.name for path in folder.glob("step*")] == ["step=2.ckpt"]
