"""Every shipped YAML: its first line launches it, and the real parser builds its model and data."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
import yaml
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from tiny import text_backbone
from world import Digits

from swirl_lightning import SWIRL, GRPOConfig
from swirl_lightning.backbones import Backbone
from swirl_lightning.callbacks import PhaseSwitch
from swirl_lightning.cli import SaveConfig, SwirlCLI
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
    cli = SwirlCLI(
        SWIRL,
        TransitionDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        save_config_callback=SaveConfig,
        auto_configure_optimizers=False,
        seed_everything_default=0,
        trainer_defaults={"max_epochs": -1},
        run=False,
        args=["--config", str(path)],
    )
    assert isinstance(cli.model, SWIRL)
    assert cli.model.model is None  # no weights were loaded
    assert isinstance(cli.model.backbone, Backbone)
    assert isinstance(cli.datamodule, TransitionDataModule)
    assert any(isinstance(callback, PhaseSwitch) for callback in cli.trainer.callbacks)


def test_the_papers_batches(path):
    config = yaml.safe_load(path.read_text())
    if not path.stem.startswith(("liquid_", "qwen_")):
        pytest.skip("not of the paper's training")
    size = config["trainer"]["accumulate_grad_batches"] * config["data"]["init_args"]["batch_size"]
    assert size == (64 if path.stem == "liquid_one_shot" else 128)


def test_reinforcement_goes_on_from_the_checkpoint_of_the_warmup(gemma_path, tmp_path):
    """As liquid_one_shot.yaml does: the same warm-up epochs, other phases, another accumulation."""

    def fit(switch, name, ckpt_path=None, **kwargs):
        module = SWIRL(text_backbone(gemma_path, quantization=None), grpo=GRPOConfig(group_size=2))
        trainer = Trainer(
            accelerator="cpu",
            logger=False,
            max_epochs=-1,
            enable_progress_bar=False,
            enable_model_summary=False,
            limit_val_batches=0,
            callbacks=[switch, ModelCheckpoint(tmp_path / name, save_last=True)],
            **kwargs,
        )
        trainer.fit(module, Digits(size=8, batch_size=4), ckpt_path=ckpt_path)
        return module, trainer

    warm, _ = fit(PhaseSwitch(2, iterations=0), "warm", accumulate_grad_batches=2)
    before = {k: v.clone() for k, v in warm.adapters.state_dict().items()}
    module, trainer = fit(PhaseSwitch(2, ["idm", "fwm"], 1), "rl", ckpt_path=str(tmp_path / "warm" / "last.ckpt"))
    assert trainer.current_epoch == 4
    assert module.label == "SWIRL iteration 1"
    reference = module.adapters.state_dict()
    for key, value in before.items():  # the references are the models of the warm-up
        role, rest = key.split(".", 1)
        if role in ("fwm", "idm"):
            assert (reference[f"{role}_ref.{rest}"] == value).all()
