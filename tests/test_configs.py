"""Every shipped YAML: its first line launches it, and the real parser builds its model and data."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
import yaml
from lightning.pytorch.callbacks import ModelCheckpoint

from support.tiny import text_backbone
from support.tiny_families import FAMILIES, SIDE, pictures
from support.trainers import quiet_trainer
from support.world import Digits
from swirl_lightning import SWIRL, GRPOConfig, OptimConfig
from swirl_lightning.backbones import Backbone
from swirl_lightning.callbacks import PhaseSwitch
from swirl_lightning.cli import main, swirl_cli
from swirl_lightning.data import TransitionDataModule

FOLDER = Path(__file__).parents[1] / "configs"
CONFIGS = sorted(FOLDER.glob("*.yaml"))


@pytest.fixture(params=CONFIGS, ids=lambda path: path.stem)
def path(request):
    return request.param


def test_the_first_line_is_the_launch_command(path):
    first = path.read_text().splitlines()[0]
    assert first.startswith("# ")
    words = shlex.split(first.removeprefix("# "))
    assert words[0] == "swirl"
    assert words[1] in ("fit", "validate", "test", "predict")
    assert words[2:4] == ["-c", f"configs/{path.name}"]
    if "--ckpt_path" in words:  # the checkpoint of another config's run
        run = Path(words[words.index("--ckpt_path") + 1]).parts[1]
        assert (FOLDER / f"{run}.yaml").is_file()


def test_the_real_parser_builds_it(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # whatever it writes
    cli = swirl_cli(["--config", str(path)], run=False)
    assert isinstance(cli.model, SWIRL)
    assert cli.model.model is None  # no weights were loaded
    assert isinstance(cli.model.backbone, Backbone)
    assert isinstance(cli.datamodule, TransitionDataModule)
    assert any(isinstance(callback, PhaseSwitch) for callback in cli.trainer.callbacks)


def test_phase_one_alone_is_what_the_paper_calls_idm_to_fwm(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cli = swirl_cli(["--config", str(FOLDER / "liquid_phase_one.yaml")], run=False)
    (switch,) = [callback for callback in cli.trainer.callbacks if isinstance(callback, PhaseSwitch)]
    assert [switch.schedule.at(epoch).name for epoch in range(4, 6)] == ["warmup", "fwm"]
    assert (switch.schedule.epochs, switch.schedule.at(5).ends) == (6, "IDM→FWM")


def test_checkpoints_are_those_of_the_last_run(path):
    """All runs of a config share a folder: a checkpoint kept from an older one would be tested in place of the new."""
    callbacks = yaml.safe_load(path.read_text())["trainer"].get("callbacks", [])
    for callback in callbacks:
        if callback["class_path"].endswith("ModelCheckpoint"):
            assert callback["init_args"]["enable_version_counter"] is False


def test_print_config_shows_it_whole(path, monkeypatch, capsys):
    """The launch command, parsed by the real parser."""
    monkeypatch.chdir(FOLDER.parent)
    words = shlex.split(path.read_text().splitlines()[0].removeprefix("# "))[1:]
    with pytest.raises(SystemExit) as end:
        main([*words, "--print_config"])
    assert end.value.code == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    given = yaml.safe_load(path.read_text())
    for key in ("model", "data"):
        assert shown[key]["class_path"].rsplit(".", 1)[-1] == given[key]["class_path"].rsplit(".", 1)[-1]
        for name, value in given[key]["init_args"].items():
            if not isinstance(value, dict):
                assert shown[key]["init_args"][name] == value


PAPER = {  # pairs a step, learning rate of RL, its warm-up steps, group sizes, iterations, pairs an iteration
    "liquid_warmup": (128, None, None, None, 0, None),
    "liquid_phase_one": (64, 1e-6, 100, (8, None), 1, None),
    "liquid_iterative": (128, 2e-7, 50, (8, 16), 3, 30_000),
    "liquid_shared": (128, 5e-7, 50, (8, 16), 3, 30_000),
    "qwen_scienceworld": (128, 5e-5, 25, (16, None), 2, None),
    "qwen_mind2web": (128, 5e-5, 25, (16, None), 2, None),
    "qwen_stabletoolbench": (128, 5e-5, 25, (64, None), 2, None),
}


@pytest.mark.parametrize("name", PAPER)
def test_the_papers_hyperparameters(name):
    config = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
    batch, rate, steps, groups, iterations, pairs = PAPER[name]
    model, data, switch = config["model"]["init_args"], config["data"]["init_args"], config["phase_switch"]
    backbone, visual = model["backbone"]["init_args"], name.startswith("liquid")
    assert config["trainer"]["accumulate_grad_batches"] * data["batch_size"] == batch
    assert switch["iterations"] == iterations
    assert data.get("pairs_per_iteration") == pairs
    assert model["grpo"]["beta"] == 0.1
    assert model["sampling"] == (
        {"temperature": 0.75, "top_p": 0.96, "top_k": 4096} if visual else {"temperature": 0.7, "top_p": 0.96}
    )
    if rate is not None:
        assert (model["grpo"]["group_size"], model["grpo"].get("idm_group_size")) == groups
        # IDM→FWM is Phase I alone (section 4.1)
        assert switch["phases"] == (["fwm"] if name == "liquid_phase_one" else ["fwm", "idm"])
        assert all(model["optim"][phase] == {"lr": rate, "warmup": steps} for phase in switch["phases"])
    if visual:
        assert switch["warmup_epochs"] == 5
        assert model["optim"]["warmup"] == {"lr": 2e-5, "warmup": 0.05}
    else:  # x and y with the action and the template are a prompt
        longest = 2 * backbone["max_state_tokens"] + backbone["max_action_tokens"]
        assert longest <= (8126 if name == "qwen_stabletoolbench" else 4096)
    assert OptimConfig(1.0).schedule == "cosine"
    assert model.get("shared_weights", False) == (name == "liquid_shared")


def test_reinforcement_goes_on_from_the_checkpoint_of_the_warmup(gemma_path, tmp_path):
    """As liquid_phase_one.yaml does: the same warm-up epochs, Phase I, another accumulation."""

    def fit(switch, name, ckpt_path=None, **kwargs):
        module = SWIRL(text_backbone(gemma_path, quantization=None), grpo=GRPOConfig(group_size=2))
        save = ModelCheckpoint(tmp_path / name, save_last=True)
        trainer = quiet_trainer(tmp_path, switch, save, max_epochs=-1, limit_val_batches=0, **kwargs)
        trainer.fit(module, Digits(size=8, batch_size=4), ckpt_path=ckpt_path)
        return module, trainer

    warm, _ = fit(PhaseSwitch(2, iterations=0), "warm", accumulate_grad_batches=2)
    before = {k: v.clone() for k, v in warm.adapters.state_dict().items()}
    module, trainer = fit(PhaseSwitch(2, ["fwm"], 1), "rl", ckpt_path=str(tmp_path / "warm" / "last.ckpt"))
    assert trainer.current_epoch == 3
    assert module.label == "IDM→FWM"
    reference = module.adapters.state_dict()
    for key, value in before.items():  # the references are the models of the warm-up
        role, rest = key.split(".", 1)
        if role in ("fwm", "idm"):
            assert (reference[f"{role}_ref.{rest}"] == value).all()


def test_the_config_of_vlms_trains(tmp_path, monkeypatch):
    """Its own callbacks, phases and settings, on a small Qwen2.5-VL and a handful of records."""
    model = FAMILIES["qwen_vl"].write(tmp_path / "model")
    for n, picture in enumerate(pictures(4)):
        picture.save(tmp_path / f"{n}.png")
    rows = [{"before_image": f"{n}.png", "after": f"room {n}", "action": f"go {n}", "id": str(n)} for n in range(4)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = yaml.safe_load((FOLDER / "vlm.yaml").read_text())
    backbone = config["model"]["init_args"]["backbone"]["init_args"]
    backbone |= {"model_name_or_path": str(model), "resolution": SIDE, "max_state_tokens": 10, "max_action_tokens": 6}
    for split in ("warmup", "state_only", "validation", "test"):
        config["data"]["init_args"][split] = str(tmp_path / "rows.jsonl")
    config["phase_switch"] |= {"warmup_epochs": 1, "iterations": 1}
    config["trainer"] |= {"accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False}
    config["trainer"]["callbacks"] = [
        callback for callback in config["trainer"]["callbacks"] if "ProgressBar" not in callback["class_path"]
    ]
    (tmp_path / "vlm.yaml").write_text(yaml.safe_dump(config))
    monkeypatch.chdir(tmp_path)
    main(["fit", "-c", "vlm.yaml"])
    assert (tmp_path / "runs" / "vlm" / "checkpoints" / "last.ckpt").is_file()
