"""What the parser says of mistyped options, keys, classes and files: one line, with the nearest name."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from jsonargparse import capture_parser

from swirl_lightning.__main__ import HUGE_PAGES
from swirl_lightning.benchmarks.minigrid import MiniGrid
from swirl_lightning.cli import swirl_cli
from swirl_lightning.console.training_help import ALL

ROOT = Path(__file__).parents[2]
QUICKSTART = ROOT / "configs" / "minigrid_quickstart.yaml"


def make_data(world_seed: int = 0) -> MiniGrid:
    """Make the data by a function in place of a class."""
    return MiniGrid(world_seed=world_seed)


@pytest.fixture(scope="module")
def parser():
    return capture_parser(lambda: swirl_cli(["fit"]))


@pytest.fixture
def refused(parser, capsys):
    """The one line of an error, without what stands at the begin and the end of all."""

    def parse(*args):
        with pytest.raises(SystemExit) as end:
            parser.parse_args(["fit", *map(str, args)])
        assert end.value.code == 2
        (line,) = capsys.readouterr().err.splitlines()
        return re.fullmatch(rf"error: (.+) \(all options: swirl fit {ALL}\)", line)[1]

    return parse


MISTYPED = [
    (["--ckpt-path", "last"], "ckpt-path is no option; did you mean 'ckpt_path'?"),
    (["--ckpt", "last"], "ckpt is no option; did you mean 'ckpt_path'?"),  # no abbreviation
    (["--print_conf"], "print_conf is no option; did you mean 'print_config'?"),
    (["--nonsense", "3"], "nonsense is no option"),
    (["--data.batch-size=3"], "data.batch-size is no option of MiniGrid; did you mean 'data.batch_size'?"),
    (["--data..batch_size", "3"], "data..batch_size is no option of MiniGrid; did you mean 'data.batch_size'?"),
    (["--data.init_args.batchsize=3"], "data.batchsize is no option of MiniGrid; did you mean 'data.batch_size'?"),
    (["--model.init_args.lora.rr=3"], "model.lora.rr is no option of SWIRL; did you mean 'model.lora.r'?"),
    (["--model.optimizer.lrr=1"], "model.optimizer.lrr is no option of AdamW; did you mean 'model.optimizer.lr'?"),
    (
        ["--model.optimizer=torch.optim.SGD", "--model.optimizer.momentm=0.9"],
        "model.optimizer.momentm is no option of SGD; did you mean 'model.optimizer.momentum'?",
    ),
    (
        ["--model.fwm_sampling.temperatur=1"],
        "model.fwm_sampling.temperatur is no option of SamplingConfig; did you mean 'model.fwm_sampling.temperature'?",
    ),
    (
        ["--trainer.logger=CSVLogger", "--trainer.logger.sav_dir=x"],
        "trainer.logger.sav_dir is no option of CSVLogger; did you mean 'trainer.logger.save_dir'?",
    ),
    (
        ["--trainer.strategy=DDPStrategy", "--trainer.strategy.find_unused_parameter=true"],
        "trainer.strategy.find_unused_parameter is no option of DDPStrategy; "
        "did you mean 'trainer.strategy.find_unused_parameters'?",
    ),
    (
        ["--trainer.profiler=SimpleProfiler", "--trainer.profiler.filenam=x"],
        "trainer.profiler.filenam is no option of SimpleProfiler; did you mean 'trainer.profiler.filename'?",
    ),
    (
        ["--trainer.callbacks=[Timer, {class_path: Results, init_args: {rows: x}}]"],
        "trainer.callbacks.rows is no option of Results; did you mean 'trainer.callbacks.row'?",
    ),
    (
        [f"--data={__name__}.make_data", "--data.world_sed=3"],
        "data.world_sed is no option of make_data; did you mean 'data.world_seed'?",
    ),
]
OF_ANOTHER_CLASS = [
    (["--data.bert=x"], "data.bert is no option of MiniGrid"),
    (["--data.judge.model=x"], "data.judge.model is no option of MiniGrid"),
    (["--data=swirl_lightning.data.JSONLTransitions", "--data.world_seed=3"], "is no option of JSONLTransitions"),
    (["--model.backbone.images_kept=3"], "model.backbone.images_kept is no option of Liquid"),
    (["--model.backbone=VLM", "--model.backbone.vqgan_path=3"], "model.backbone.vqgan_path is no option of VLM"),
    (["--model.learner=GRPO", "--model.learner.threshold=-1"], "model.learner.threshold is no option of GRPO"),
    (["--model.reward=MeanLogProb", "--model.reward.seed=3"], "model.reward.seed is no option of MeanLogProb"),
    (
        ["--model.optimizer.params=3"],
        "model.optimizer.params is no option of AdamW; did you mean 'model.optimizer.eps'",
    ),
    (["--trainer.callbacks.leave=true"], "trainer.callbacks.leave is no option of TransitionImages"),  # the last one
    (["--trainer.callbacks=[{class_path: Timer, init_args: {leave: 1}}]"], "callbacks.leave is no option of Timer"),
    (["--trainer.logger=CSVLogger", "--trainer.logger.max_queue=x"], "max_queue is no option of CSVLogger"),
    (["--trainer.accelerator=CPUAccelerator", "--trainer.accelerator.cores=1"], "is no option of CPUAccelerator"),
    (["--trainer.logger.save_dir=x"], "trainer.logger: options of a class, and no class: name it, too"),
    (
        ["--trainer.strategy=ddp", "--trainer.strategy.find_unused_parameters=true"],
        "trainer.strategy: 'ddp' is no class path (package.Class), and has no option find_unused_parameters",
    ),
]
HYPHENS = [
    (["extra"], "extra is no option"),
    (["trainer.max_epochs=3"], "trainer.max_epochs is no option; did you mean 'trainer.max_epochs'?"),
    (["-trainer.max_epochs", "3"], "-trainer.max_epochs is no option; did you mean 'trainer.max_epochs'?"),
    (["-x", "1"], "-x is no option"),
    (["-ckpt_path", "last"], "kpt_path'; did you mean '--ckpt_path'?"),  # -c takes what follows at once
]
KEYS = [
    ("{model: {init_args: {optim: {fwm: {rl: 3}}}}}", "model.optim.fwm.rl is no option of SWIRL"),
    ("{phase_switch: {iteration: 3}}", "phase_switch.iteration is no option; did you mean 'phase_switch.iterations'?"),
    ("{data: {init_args: {bert: x}}}", "data.bert is no option of MiniGrid"),
    (f"{{data: {{init_args: {{bert: {'x' * 300}}}}}}}", "data.bert is no option of MiniGrid"),
    ("{trainer: {logger: {class_path: CSVLogger, init_args: {nam: x}}}}", "did you mean 'trainer.logger.name'?"),
    (
        "{model: {init_args: {optimizer: {class_path: torch.optim.SGD, init_args: {momentm: 1}}}}}",
        "model.optimizer.momentm is no option of SGD; did you mean 'model.optimizer.momentum'?",
    ),
    ("[not, a, mapping]", "[not, a, mapping]"),
]


@pytest.mark.parametrize(("args", "told"), MISTYPED + OF_ANOTHER_CLASS + HYPHENS)
def test_an_option_that_there_is_not(refused, args, told):
    assert told in refused("-c", QUICKSTART, *args)


@pytest.mark.parametrize(("text", "told"), KEYS)
def test_a_key_that_there_is_not(refused, tmp_path, text, told):
    (tmp_path / "own.yaml").write_text(text)
    assert told in refused("-c", QUICKSTART, "-c", tmp_path / "own.yaml")


@pytest.mark.parametrize(
    ("option", "written", "name"),
    [
        ("model", "SWRIL", "SWIRL"),
        ("model.backbone", "Liqid", "Liquid"),
        ("model.learner", "BestofN", "BestOfN"),
        ("model.optimizer", "AdmW", "AdamW"),
        ("model.reward", "MeanLogPob", "MeanLogProb"),
        ("model.rollout_engine", "Genrate", "Generate"),
        ("data", "MiniGird", "MiniGrid"),
        ("trainer.callbacks", "Resluts", "Results"),
        ("trainer.logger", "CSVLoger", "CSVLogger"),
        ("trainer.plugins", "SLURMEnvironmet", "SLURMEnvironment"),
    ],
)
def test_a_class_that_there_is_not(refused, option, written, name):
    told = f"{option}: {written!r} is no class path (package.Class); did you mean {name!r}?"
    assert refused("-c", QUICKSTART, f"--{option}={written}") == told
    key = option.replace("model.", "model.init_args.").split(".")
    nested = "".join(f"{{{part}: " for part in key) + f"{{class_path: {written}}}" + "}" * len(key)
    assert refused("-c", QUICKSTART, "-c", nested) == told


def test_help_of_a_class_that_there_is_not(refused):
    assert (
        refused("--data.help=MiniGird") == "data: 'MiniGird' is no class path (package.Class); did you mean 'MiniGrid'?"
    )


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["-c", "x.yaml"], "config: File does not exist: '{here}/x.yaml'"),
        (["-cx.yaml"], "config: File does not exist: '{here}/x.yaml'"),
        (["-c", "none/missing.yaml"], "config: File does not exist: '{here}/none/missing.yaml'"),
        (
            ["--config=planing.yaml"],
            "config: File does not exist: '{here}/planing.yaml'; did you mean 'planning.yaml'?",
        ),
        (["planning.yaml"], "planning.yaml stands without an option: a configuration is given by -c planning.yaml"),
        (["-c", QUICKSTART, "x.yml"], "x.yml stands without an option: a configuration is given by -c x.yml"),
    ],
)
def test_a_configuration_that_there_is_not(refused, tmp_path, monkeypatch, args, told):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "planning.yaml").touch()
    assert refused(*args) == told.format(here=tmp_path)


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
