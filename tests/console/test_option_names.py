"""Mistyped options that are found before the libraries are imported, and that nothing else is taken for one."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from jsonargparse import capture_parser
from recipes.study import Study

from support.option_table import OPEN, collect, options_of, places
from swirl_lightning.__main__ import HUGE_PAGES
from swirl_lightning.cli import swirl_cli
from swirl_lightning.console import option_names
from swirl_lightning.console.option_names import mistyped

ROOT = Path(__file__).parents[2]
QUICKSTART = ROOT / "configs" / "minigrid_quickstart.yaml"


def test_the_table_of_options_is_that_of_the_parser():
    assert option_names.TABLE.read_text().splitlines() == collect(), "make options writes it anew"


@pytest.mark.parametrize("place", places())
def test_options_of_a_class_are_its_own(place):
    classes = places()[place]
    options = {each: sorted(options_of(each, skip=place == "model.optimizer")) for each in classes}
    for each, own in options.items():
        chosen = f"--{place}={each.__module__}.{each.__name__}"
        assert mistyped(["fit", chosen, *(f"--{place}.{option}=1" for option in own)]) is None
        assert mistyped(["fit", *(f"--{place}.{option}=1" for option in own), chosen]) is None
        others = sorted({option for other in options.values() for option in other} - {*own})
        for option in random.Random(0).sample(others, min(3, len(others))) if each not in OPEN else ():
            told = mistyped(["fit", chosen, f"--{place}.{option}=1"])
            assert told.startswith(f"{place}.{option} is no option of {each.__name__}")
            assert f"did you mean '{place}.{option}'" not in told


ACCEPTED = [
    [
        *("--data", "swirl_lightning.benchmarks.minigrid.MiniGrid", "--data.world_seed=3"),
        *("--trainer.logger=TensorBoardLogger", "--trainer.logger.save_dir=x", "--trainer.logger.max_queue=3"),
        *("--model.optimizer=torch.optim.SGD", "--model.optimizer.momentum=0.9", "--model.grpo.beta=0"),
    ],
    [
        *("--data", "MiniGrid", "--data.init_args.families", "[walls]", "--data.action_shares.drop=1"),
        *("--trainer.logger=[{class_path: CSVLogger, init_args: {save_dir: x}}]", "--trainer.logger.prefix=x"),
        "--model.optimizer.weight_decay=0.1",
    ],
    [
        "--data={class_path: MiniGrid, init_args: {world_seed: 3}}",
        *("--trainer.logger=WandbLogger", "--trainer.logger.dict_kwargs.entity=x", "--trainer.logger.project=x"),
        *("--model.fwm_sampling.temperature=1.2", "--model.optim.bootstrap.lr=1.0"),
    ],
    [
        "--data={init_args: {world_seed: 3}, class_path: MiniGrid}",
        *("--trainer.callbacks+=RichProgressBar", "--trainer.callbacks.theme.time=red", "--trainer.callbacks+=Timer"),
        *("--model.reward=ShuffledWithinGroup", "--model.reward.seed=3", "--model.learner.threshold=-1"),
    ],
    [
        *("--data={init_args: {world_seed: 3}}", "--data=swirl_lightning.data.JSONLTransitions", "--data.warmup=x"),
        *("--trainer.callbacks=[RichProgressBar, Timer]", "--trainer.callbacks=[{init_args: {leave: true}}, Timer]"),
        "--model.fwm_sampling.class_path=swirl_lightning.engine.drawing.SamplingConfig",
    ],
    [
        "-c",
        "{data: {init_args: {world_seed: 3}}}",
        "--model.backbone=FOLDER/backbone",
        "--model.backbone.images_kept=3",
    ],
    ["--model=FOLDER/model", "--model=SWIRL", "--model.backbone.images_kept=3"],
    [
        *(
            "--trainer.strategy=DDPStrategy",
            "--trainer.strategy.find_unused_parameters=true",
            "--trainer.accelerator=cpu",
        ),
        *("--trainer.profiler=SimpleProfiler", "--trainer.profiler.extended=true"),
        *("--trainer.plugins=SLURMEnvironment", "--trainer.plugins.auto_requeue=false"),
    ],
    ["--trainer.strategy=ddp", "--trainer.profiler=simple"],
]
REFUSED = [
    (["--data.bert=x"], "data.bert is no option of MiniGrid"),
    (["--data.judge.model=x"], "data.judge.model is no option of MiniGrid"),
    (["-c", "{data: {init_args: {bert: x}}}"], "data.bert is no option of MiniGrid"),
    (["-c", f"{{data: {{init_args: {{bert: {'x' * 300}}}}}}}"], "data.bert is no option of MiniGrid"),  # no file's name
    (["--data=swirl_lightning.data.JSONLTransitions", "--data.world_seed=3"], "is no option of JSONLTransitions"),
    (["--model.backbone.images_kept=3"], "model.backbone.images_kept is no option of Liquid"),
    (["--model.backbone=VLM", "--model.backbone.vqgan_path=3"], "model.backbone.vqgan_path is no option of VLM"),
    (["--model.learner=GRPO", "--model.learner.threshold=-1"], "model.learner.threshold is no option of GRPO"),
    (["--model.reward=MeanLogProb", "--model.reward.seed=3"], "model.reward.seed is no option of MeanLogProb"),
    (["--trainer.callbacks.leav=true"], "trainer.callbacks.leav is no option of TransitionImages"),
    (
        ["--trainer.callbacks=[{class_path: Timer, init_args: {leave: 1}}]"],
        "trainer.callbacks.leave is no option of Ti",
    ),
    (["--trainer.logger.sav_dir=x"], "did you mean 'trainer.logger.save_dir'?"),
    (["--trainer.logger=CSVLogger", "--trainer.logger.max_queue=x"], "is no option of CSVLogger"),
    (
        ["--model.optimizer=torch.optim.SGD", "--model.optimizer.momentm=0.9"],
        "SGD; did you mean 'model.optimizer.momentum'?",
    ),
    (["--model.optimizer.params=3"], "model.optimizer.params is no option"),
    (
        ["--trainer.strategy=DDPStrategy", "--trainer.strategy.find_unused_parameter=true"],
        "DDPStrategy; did you mean 'trainer.strategy.find_unused_parameters'?",
    ),
    (
        ["--trainer.profiler=SimpleProfiler", "--trainer.profiler.filenam=x"],
        "did you mean 'trainer.profiler.filename'?",
    ),
    (["--trainer.plugins=SLURMEnvironment", "--trainer.plugins.auto_requeu=1"], "is no option of SLURMEnvironment"),
    (["--trainer.accelerator=CPUAccelerator", "--trainer.accelerator.cores=1"], "is no option of CPUAccelerator"),
    (
        ["--trainer.strategy=ddp", "--trainer.strategy.find_unused_parameters=true"],
        "trainer.strategy.find_unused_parameters is no option: trainer.strategy is ddp, a name and no class",
    ),
    (["--trainer.profiler=simple", "--trainer.profiler.extended=1"], "trainer.profiler is simple, a name and no class"),
    (["--model.fwm_sampling.temperatur=1"], "did you mean 'model.fwm_sampling.temperature'?"),
    (["--model.reward=mine.Reward", "--model.grpo.eps=3"], "model.grpo.eps is no option of SWIRL"),
    (["--data=mine.Data", "--model.backbone.dtyp=x"], "did you mean 'model.backbone.dtype'?"),
    (["-cmissing.yaml", "--data=MiniGrid", "--data.bert=x"], "data.bert is no option of MiniGrid"),
    (["--ckpt-path", "last"], "ckpt-path is no option; did you mean 'ckpt_path'?"),
    (["--data.batch-size=3"], "data.batch-size is no option of MiniGrid; did you mean 'data.batch_size'?"),
    (["--data..batch_size", "3"], "did you mean 'data.batch_size'?"),
    (["-ckpt_path", "last"], "-ckpt_path is no option; did you mean '--ckpt_path'?"),
    (["-x", "1"], "-x is no option"),
    (["--seed_everything=1", "trainer.max_epochs=3"], "no option; did you mean 'trainer.max_epochs'?"),
    (["-cmissing.yaml", "extra"], "extra is no option"),
]


def test_the_table_agrees_with_the_parser(tmp_path, capsys):
    """What the parser accepts passes, and what is told at once the parser refuses, too; both after the quickstart."""
    backbone = "{class_path: swirl_lightning.backbones.VLM, init_args: {model_name_or_path: x}}"
    (tmp_path / "backbone").write_text(backbone)
    (tmp_path / "model").write_text(f"{{class_path: swirl_lightning.SWIRL, init_args: {{backbone: {backbone}}}}}")
    parser = capture_parser(lambda: swirl_cli(["fit"]))
    for given in ACCEPTED:
        args = ["fit", "-c", str(QUICKSTART), *(word.replace("FOLDER", str(tmp_path)) for word in given)]
        parser.parse_args(args)
        assert mistyped(args) is None
    for given, told in REFUSED:
        args = ["fit", "-c", str(QUICKSTART), *given]
        assert told in mistyped(args)
        with pytest.raises(SystemExit):
            parser.parse_args(args)


def test_options_of_a_library_in_another_version_are_left_to_the_parser(monkeypatch):
    monkeypatch.setattr(option_names, "minor_version", {"lightning": "2.6", "torch": "3.0"}.get)
    for left in ("--model.optimizer.new=3", "--trainer.callbacks.new=3", "--trainer.logger.new=3"):
        assert mistyped(["fit", left]) is None
    for judged in ("--trainer.new=3", "--model.new=3"):
        assert "is no option" in mistyped(["fit", judged])


@pytest.mark.parametrize("config", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_no_option_of_a_configuration_is_taken_for_a_mistyped_one(config):
    def flat(value, above=""):
        if isinstance(value, dict):
            return [line for key, below in value.items() for line in flat(below, f"{above}{key}.")]
        return [f"--{above[:-1]}={value}"]

    assert mistyped(["fit", *flat(yaml.safe_load(config.read_text()))]) is None
    assert mistyped(["fit", "-c", str(config)]) is None
    for wrong in ("--trainer.max_epoch=3", "--model.init_args.lora.rr=3", "--data.init_args.batchsize=3"):
        assert "is no option" in mistyped(["fit", "-c", str(config), wrong])


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").rglob("*.yaml")), ids=lambda path: path.stem)
def test_no_option_of_a_study_is_taken_for_a_mistyped_one(path):
    study = yaml.safe_load(path.read_text())
    config = ["fit", *(word for layer in Study.load(path).configs for word in ("-c", str(ROOT / layer)))]
    for row in study["rows"].values():
        options = {**study["options"], **row.get("options", {}), **study["seeded"]}
        assert mistyped([*config, *(f"--{name}={json.dumps(value)}" for name, value in options.items())]) is None


@pytest.mark.parametrize(
    "text",
    [
        "data: {class_path: &c mine.Data, init_args: {folder: y}}",
        "data: mine.Data",
        "data: parts/mine.yaml",
        "data: {class_path: !!str mine.Data}",
        "data:\n  class_path: >-\n    mine.Data\n",
        "data:\n  class_path:  # own\n    mine.Data\n",
        '{"data": {"class_path": "mine\\u002eData"}}',
        "model: {init_args: {backbone: mine.Backbone}}",
        "model: {init_args: {backbone: {class_path: mine.Backbone}}}",
        "trainer: {max_epochs: !!bool maybe}  # mine",
        "trainer: {max_epochs: !!int ''}  # mine",
        "1: 2",
        "'': 2",
        '"a\\e[31mX\\nerror: b": 3',
        "[not, a, mapping]",
        "",
    ],
)
def test_what_a_configuration_leaves_open_is_left_to_the_parser(tmp_path, text):
    (tmp_path / "own.yaml").write_text(text)
    own = ["--model.backbone.window=3"] if "Backbone" in text else ["--data.folder=y"] if "ine" in text else []
    assert mistyped(["fit", "-c", str(QUICKSTART), "-c", str(tmp_path / "own.yaml"), *own]) is None


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_left_for_the_parser_to_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")  # to read it would wait for ever
    for path in (tmp_path / "pipe", "/dev/zero", tmp_path):
        assert mistyped(["fit", "-c", str(path), "--data.folder=y"]) is None


@pytest.mark.parametrize(
    "args",
    [
        ["--print_config=skip_default"],
        ["--model.help"],
        ["--data.help", "MiniGrid"],
        ["--trainer.callbacks+=RichProgressBar", "--trainer.callbacks.leave=true"],
        ["--trainer.logger.save_dir", "runs"],
        ["--model.optimizer=mine.SGD", "--model.optimizer.momentm=0.9"],
        ["--trainer.strategy=mine.Strategy", "--trainer.strategy.stage=3"],
        ["--trainer=parts/trainer.yaml", "--trainer.logger.anything=3"],
        ["--trainer.logger=torch_tools.CSVLogger", "--trainer.logger.anything=3"],
        ["--trainer.logger=WandbLogger", "--trainer.logger.anything=3"],
        ["--data=MiniGrid", "--data.action_shares.drop", "1"],
        ["--data.judge.init_args.model", "x"],
        ["--phase_switch.phases+", "idm"],
        ["--model.reward", "mine.Reward", "--model.reward.weight", "2"],
        ["--data", "mine.Data", "--data.folder", "x"],
        ["--model.backbone.class_path=mine.Backbone", "--model.backbone.window", "3"],
        ["--data.dict_kwargs.batchsize", "3"],
        ["--data", "Data.of.mine", "--data.anything", "3"],
        ["-cmissing.yaml", "--data.anything", "3"],
        ["--config", "{data: {class_path: mine.Data}}", "--data.anything", "3"],
        ["--data=parts/mine.yaml", "--data.anything", "3"],
        ["--model", '{"class_path": "mine.Model"}', "--model.anything", "3"],
        ["--model.templates.fwm", "--- {before} {action}"],
        ["--", "--=3", "--+", "3"],
        ["--tr\x1b[31m\nerror: y"],
        ["--" + "x" * 1000],
    ],
    ids=lambda args: args[0],
)
def test_what_the_table_cannot_know_is_left_to_the_parser(args):
    assert mistyped(["fit", *args]) is None


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["-c", "missing.yaml"], "the configuration missing.yaml does not exist"),
        (["--config", f"{QUICKSTART.parent}/minigrid_quickstrat.yaml"], "did you mean 'minigrid_quickstart.yaml'?"),
        ([str(QUICKSTART)], f"a configuration is given by -c {QUICKSTART}"),
        (["--data", "MiniGird"], "data: 'MiniGird' is no class path (package.Class); did you mean 'MiniGrid'?"),
        (["--model.backbone.class_path=Liqud"], "model.backbone: 'Liqud' is no class"),
        (["-c", "{model: {reward: {class_path: MeanLogPob}}}"], "model.reward: 'MeanLogPob' is no class"),
    ],
)
def test_files_and_classes_that_are_not_there_are_told_before_the_libraries_are_imported(args, told):
    assert told in mistyped(["fit", *args])


FRESH = """
import sys
from contextlib import suppress
from swirl_lightning.__main__ import main
with suppress(SystemExit):
    main(sys.argv[1:])
import torch
x = torch.ones(16 << 20)
print("---")
print(x.data_ptr())
print(open("/proc/self/smaps").read() if sys.platform == "linux" else "")
"""
SWITCH = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def test_a_fresh_process_knows_short_names_and_lays_large_tensors_in_huge_pages():
    """The parser knows what has been imported, and the switch of pages is read when the first tensor is made."""
    chosen = [*("--data", "MiniGrid", "--data.world_seed", "3"), *("--model.backbone", "TextLLM")]
    chosen += ["--model.backbone.model_name_or_path", "x", "--print_config"]
    environment = {name: value for name, value in os.environ.items() if name != HUGE_PAGES}
    run = subprocess.run([sys.executable, "-c", FRESH, "fit", *chosen], capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stderr
    printed, memory = run.stdout.split("---\n")
    config = yaml.safe_load(printed)
    assert config["data"]["class_path"] == "swirl_lightning.benchmarks.minigrid.MiniGrid"
    assert config["model"]["init_args"]["backbone"]["class_path"] == "swirl_lightning.backbones.TextLLM"
    if SWITCH.exists() and "[never]" not in SWITCH.read_text():
        # asked for: whether there are any depends on what else fills the memory
        place, mappings = memory.split("\n", 1)
        found = re.findall(r"^([0-9a-f]+)-([0-9a-f]+) .*?^VmFlags: (.*?)$", mappings, re.MULTILINE | re.DOTALL)
        middle = int(place) + (32 << 20)
        (flags,) = (flags.split() for first, end, flags in found if int(first, 16) <= middle < int(end, 16))
        assert "hg" in flags, flags
