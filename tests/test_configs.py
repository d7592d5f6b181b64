"""Every shipped YAML: its first line launches it, and the real parser builds its model and data."""

from __future__ import annotations

import functools
import itertools
import json
import math
import re
import shlex
import warnings
from pathlib import Path

import pytest
import yaml
from lightning.pytorch.callbacks import ModelCheckpoint

from support.tiny import text_backbone
from support.tiny_families import FAMILIES, SIDE, noise_images
from support.trainers import quiet_trainer
from support.world import Digits
from swirl_lightning import SWIRL, GRPOConfig, OptimConfig
from swirl_lightning.__main__ import main
from swirl_lightning.backbones import Backbone
from swirl_lightning.callbacks import PhaseSwitch
from swirl_lightning.cli import TRAINER, swirl_cli
from swirl_lightning.data import TransitionDataModule

FOLDER = Path(__file__).parents[1] / "configs"
CONFIGS = sorted(FOLDER.glob("*.yaml"))


def launch(path):
    """The words of a config's launch command; of a run's ``config.yaml``, the config that it is a run of."""
    words = shlex.split(path.read_text().splitlines()[0].removeprefix("# "))
    runs = [re.fullmatch(r"runs/(\w+)/config\.yaml", word) for word in words]
    return [word if run is None else f"configs/{run[1]}.yaml" for word, run in zip(words, runs, strict=True)]


def files(words):
    """The configs that are laid over each other, the last on top."""
    *below, last = [FOLDER.parent / word for flag, word in itertools.pairwise(words) if flag == "-c"]
    return [*(layer for path in below for layer in files(launch(path))), last]


def merged(paths):
    """The settings of configs that are laid over each other."""

    def lay(below, above):
        if not (isinstance(below, dict) and isinstance(above, dict)):
            return above
        return below | {key: lay(below.get(key), value) for key, value in above.items()}

    return functools.reduce(lay, [yaml.safe_load(path.read_text()) for path in paths])


def build(path, *args):
    layers = [word for file in files(launch(path)) for word in ("--config", str(file))]
    return swirl_cli([*layers, *args], run=False)


@functools.cache
def built(path):
    """What the parser makes of a config, for tests that change nothing of it."""
    return build(path)


@pytest.fixture(params=CONFIGS, ids=lambda path: path.stem)
def path(request):
    return request.param


def test_the_first_line_is_the_launch_command(path):
    first = path.read_text().splitlines()[0]
    assert first.startswith("# ")
    words = shlex.split(first.removeprefix("# "))
    assert words[0] == "swirl"
    assert words[1] in ("fit", "validate", "test", "predict")
    run = Path(words[words.index("--ckpt_path") + 1]).parts[1] if "--ckpt_path" in words else None
    if run is not None:  # the checkpoint of another config's run
        assert (FOLDER / f"{run}.yaml").is_file()
    given = yaml.safe_load(path.read_text())
    if words[1] == "test":  # on top of what that run was
        assert words[2:6] == ["-c", f"runs/{run}/config.yaml", "-c", f"configs/{path.name}"]
    else:  # alone, or on top of a config of another run
        assert files(words)[-1] == path
        assert len(files(words)) == 1 + ("model" not in given or "class_path" not in given["model"])


def test_the_real_parser_builds_it(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # whatever it writes
    cli = built(path)
    assert isinstance(cli.model, SWIRL)
    assert cli.model.model is None  # no weights were loaded
    assert isinstance(cli.model.backbone, Backbone)
    assert isinstance(cli.datamodule, TransitionDataModule)
    assert any(isinstance(callback, PhaseSwitch) for callback in cli.trainer.callbacks)
    name = "quickstart" if path.stem == "minigrid_quickstart" else path.stem
    assert Path(cli.trainer.log_dir) == Path("runs") / name
    saving = [c for c in cli.trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint)]
    assert saving
    assert not any(each._enable_version_counter for each in saving)  # all runs of a config share a folder


def test_a_config_says_what_it_must_and_nothing_of_the_defaults(path):
    given = yaml.safe_load(path.read_text())
    assert not given["trainer"].keys() & {"logger", *TRAINER}
    assert given["trainer"]["default_root_dir"].startswith("runs/")


def test_a_test_is_of_the_model_that_the_run_trained(path):
    """An overlay changes the data, where results go and how it is evaluated; what it trains with is the run's."""
    if launch(path)[1] != "test":
        return
    given, (*_, run, _) = yaml.safe_load(path.read_text()), files(launch(path))
    assert set(given.get("model", {}).get("init_args", {})) <= {"evaluation"}
    assert given["trainer"]["default_root_dir"] != yaml.safe_load(run.read_text())["trainer"]["default_root_dir"]
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.filterwarnings("ignore", message="LightningCLI's args parameter")
        ours, theirs = build(path).config, build(run).config
    models = [config.model.init_args.as_dict() | {"evaluation": None} for config in (ours, theirs)]
    assert models[0] == models[1]
    assert ours.phase_switch == theirs.phase_switch


def test_phase_one_alone_is_what_the_paper_calls_idm_to_fwm(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cli = swirl_cli(["--config", str(FOLDER / "liquid_phase_one.yaml")], run=False)
    (switch,) = [callback for callback in cli.trainer.callbacks if isinstance(callback, PhaseSwitch)]
    assert [switch.schedule.at(epoch).name for epoch in range(4, 6)] == ["warmup", "fwm"]
    assert (switch.schedule.epochs, switch.schedule.at(5).ends) == (6, "IDM→FWM")


def test_the_text_config_fits_the_data_that_it_names():
    """Of four training episodes a task, the default of prepare.scienceworld, it has 2,389 pairs: 19 steps."""
    settings = yaml.safe_load((FOLDER / "qwen_scienceworld.yaml").read_text())["model"]["init_args"]["optim"]
    pairs = 2389 * 6 / 4
    for name in ("fwm", "idm"):
        OptimConfig(**settings[name]).check(name, math.ceil(pairs / 128))


@pytest.mark.parametrize("below", ["liquid_iterative", "qwen_mind2web", "qwen_scienceworld", "qwen_stabletoolbench"])
@pytest.mark.parametrize("overlay", ["bootstrap", "sft_merge"])
def test_the_baselines_are_laid_over_visual_and_text_configs(below, overlay, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cli = build(FOLDER / f"{below}.yaml", "--config", str(FOLDER / f"{overlay}.yaml"))
    (switch,) = [callback for callback in cli.trainer.callbacks if isinstance(callback, PhaseSwitch)]
    assert [switch.schedule.at(epoch).name for epoch in range(4, 6)] == ["warmup", "bootstrap"]
    assert switch.schedule.epochs == 6
    assert cli.model.bootstrap_labels == "once"
    assert cli.model.optim.of("bootstrap") == cli.model.optim.warmup  # SFT's
    assert cli.datamodule.labelled_share == (0.5 if overlay == "sft_merge" else 0)
    assert cli.model.backbone.quantization == "nf4"


def test_phase_two_alone_is_what_the_paper_calls_fwm_to_idm(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cli = build(FOLDER / "phase_two.yaml")
    (switch,) = [callback for callback in cli.trainer.callbacks if isinstance(callback, PhaseSwitch)]
    assert (switch.schedule.epochs, switch.schedule.at(5).ends) == (6, "FWM→IDM")
    assert cli.model.optim.of("idm") == OptimConfig(1e-6, 100)


@pytest.mark.parametrize("name", [path.stem for path in CONFIGS if len(files(launch(path))) > 1])
def test_the_parser_lays_configs_over_each_other_key_by_key(name, tmp_path, monkeypatch):
    """What the upper one does not say stays as below: options of GRPO, for example."""
    monkeypatch.chdir(tmp_path)
    told = merged(files(launch(FOLDER / f"{name}.yaml")))
    shown = built(FOLDER / f"{name}.yaml").config
    model, given = shown.model.init_args, told["model"]["init_args"]
    for part in ("grpo", "sampling", "lora"):
        assert {key: model[part][key] for key in given[part]} == given[part]
    for phase, values in given["optim"].items():
        assert {key: model.optim[phase][key] for key in values} == values
    assert all(model.backbone.init_args[key] == value for key, value in given["backbone"]["init_args"].items())
    assert model.templates.as_dict() == given.get("templates", model.templates.as_dict())


@pytest.mark.parametrize(("name", "key"), [("qwen_mind2web", "model.backbone"), ("recipe", "data")])
def test_a_config_without_the_one_below_it_is_told(name, key, capsys):
    with pytest.raises(SystemExit):
        main(["fit", "-c", str(FOLDER / f"{name}.yaml")])
    told = capsys.readouterr().err.splitlines()[-1]
    assert told.startswith(f"error: {key}: class_path is missing; a configuration without it is laid over another one")


def test_the_quickstart_shows_what_one_would_change(monkeypatch, capsys):
    monkeypatch.chdir(FOLDER.parent)
    with pytest.raises(SystemExit):
        main(["fit", "-c", "configs/minigrid_quickstart.yaml", "--print_config=skip_default"])
    shown = capsys.readouterr().out
    assert len(shown.splitlines()) < 80
    (settings,) = [yaml.safe_load(shown)]
    assert settings["model"]["init_args"]["optim"]["fwm"] == {"lr": 5e-4, "warmup": 20.0, "schedule": "constant"}
    assert settings["trainer"]["default_root_dir"] == "runs/quickstart"


LAID = [path for path in CONFIGS if len(files(launch(path))) > 1]


@pytest.mark.parametrize("path", LAID[::3], ids=lambda path: path.stem)  # that each is laid is tested above
def test_print_config_shows_what_is_laid_over_another(path, monkeypatch, capsys):
    """By the real parser."""
    monkeypatch.chdir(FOLDER.parent)
    command, layers = launch(path)[1], [word for file in files(launch(path)) for word in ("-c", str(file))]
    with pytest.raises(SystemExit) as end:
        main([command, *layers, "--print_config"])
    assert end.value.code == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    given = yaml.safe_load(path.read_text())
    for key in given.keys() & {"model", "data"}:
        if "class_path" in given[key]:
            assert shown[key]["class_path"].rsplit(".", 1)[-1] == given[key]["class_path"].rsplit(".", 1)[-1]
        for name, value in given[key]["init_args"].items():
            if not isinstance(value, dict):
                assert shown[key]["init_args"][name] == value


# in the warm-up a pair is two sequences, one of each direction, and the paper has 128 sequences
PAPER = {  # pairs a step, learning rate of RL, its warm-up steps, group sizes, iterations, pairs an iteration
    "liquid_warmup": (64, None, None, None, 0, None),
    "liquid_phase_one": (64, 1e-6, 100, (8, 16), 1, None),
    "liquid_iterative": (128, 2e-7, 50, (8, 16), 3, 30_000),
    "liquid_shared": (128, 5e-7, 50, (8, 16), 3, 30_000),
    "qwen_scienceworld": (128, 5e-5, 25, (16, None), 2, None),
    "qwen_mind2web": (128, 5e-5, 25, (16, None), 2, None),
    "qwen_stabletoolbench": (128, 5e-5, 25, (64, None), 2, None),
}


@pytest.mark.parametrize("name", PAPER)
def test_the_papers_hyperparameters(name):
    config = merged(files(launch(FOLDER / f"{name}.yaml")))
    batch, rate, steps, groups, iterations, pairs = PAPER[name]
    model, data, switch = config["model"]["init_args"], config["data"]["init_args"], config["phase_switch"]
    backbone, images = model["backbone"]["init_args"], name.startswith("liquid")
    assert data["pairs_per_step"] == batch
    assert switch["iterations"] == iterations
    assert data.get("pairs_per_iteration") == pairs
    assert model["grpo"]["beta"] == 0.1
    assert model["sampling"] == (
        {"temperature": 0.75, "top_p": 0.96, "top_k": 4096} if images else {"temperature": 0.7, "top_p": 0.96}
    )
    if rate is not None:
        assert (model["grpo"]["group_size"], model["grpo"].get("idm_group_size")) == groups
        # IDM→FWM is Phase I alone (section 4.1)
        assert switch["phases"] == (["fwm"] if name == "liquid_phase_one" else ["fwm", "idm"])
        assert all(model["optim"][phase] == {"lr": rate, "warmup": steps} for phase in switch["phases"])
    if images:
        assert switch["warmup_epochs"] == 5
        assert model["optim"]["warmup"] == {"lr": 2e-5, "warmup": 0.05}
    else:  # x and y with the action and the template are a prompt
        longest = 2 * backbone["max_state_tokens"] + backbone["max_action_tokens"]
        assert longest <= (8126 if name == "qwen_stabletoolbench" else 4096)
    assert OptimConfig(1.0).schedule == "cosine"
    assert model.get("shared_weights", False) == (name in ("liquid_shared", "liquid_warmup"))


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
    for n, image in enumerate(noise_images(4)):
        image.save(tmp_path / f"{n}.png")
    rows = [{"before_image": f"{n}.png", "after": f"room {n}", "action": f"go {n}", "id": str(n)} for n in range(4)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = yaml.safe_load((FOLDER / "vlm.yaml").read_text())
    backbone = config["model"]["init_args"]["backbone"]["init_args"]
    backbone |= {"model_name_or_path": str(model), "resolution": SIDE, "max_state_tokens": 10, "max_action_tokens": 6}
    for split in ("warmup", "state_only", "validation", "test"):
        config["data"]["init_args"][split] = str(tmp_path / "rows.jsonl")
    config["phase_switch"] |= {"warmup_epochs": 1, "iterations": 1}
    config["trainer"] |= {"accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False}
    for phase in ("fwm", "idm"):
        config["model"]["init_args"]["optim"][phase]["warmup"] = 0  # there is one step
    (tmp_path / "vlm.yaml").write_text(yaml.safe_dump(config))
    monkeypatch.chdir(tmp_path)
    main(["fit", "-c", "vlm.yaml"])
    assert (tmp_path / "runs" / "vlm" / "checkpoints" / "last.ckpt").is_file()
