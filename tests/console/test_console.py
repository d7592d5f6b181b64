"""What the command says when it is mistyped, and how little it imports for that."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from torch.utils.data import DataLoader

from support.cli import here
from support.processes import run_module
from swirl_lightning.__main__ import COMMANDS, main
from swirl_lightning.console.run import run_command
from swirl_lightning.data.loader import TransitionLoader
from swirl_lightning.transition import Transition

HELPED = """
import sys
from contextlib import suppress

from swirl_lightning.__main__ import COMMANDS, main

for command in COMMANDS:
    with suppress(SystemExit):
        main([command, "--help"])
    print("imported:", "torch" in sys.modules, end="\\0")

from recipes.planning import main as planning

with suppress(SystemExit):
    planning(["--help"])
print("imported:", "torch" in sys.modules, end="")

for command in COMMANDS:  # the parser of fit imports the libraries
    with suppress(SystemExit):
        main([command, "--bogus"])
"""

PREPARES = """
import pkgutil
import runpy
import sys

import swirl_lightning.prepare as package

for name in [module.name for module in pkgutil.iter_modules(package.__path__)]:
    sys.argv = [name, "--bogus", "x", "x"]
    try:
        runpy.run_module(f"{package.__name__}.{name}", run_name="__main__")
    except SystemExit as end:
        print(name, end.code)
print("imported:", *sorted({"torch", "lightning", "transformers"} & sys.modules.keys()))
"""

ROOT = Path(__file__).parents[2]
QUICKSTART = ROOT / "configs" / "minigrid_quickstart.yaml"
WATCHED = """
import sys

from swirl_lightning.__main__ import main

try:
    main()
finally:
    print("imported:", *sorted({"torch", "peft", "bitsandbytes", "tensorboard"} & sys.modules.keys()))
"""


def alone(*args):
    """In a process of its own: exit code, stderr and the heavy packages that were imported."""
    command = [sys.executable, "-c", WATCHED, *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    return done.returncode, done.stderr, done.stdout.splitlines()[-1].split()[1:]


@pytest.mark.parametrize(
    ("args", "code", "told"),
    [
        (["--help"], 0, ""),
        (["fiit"], 2, "error: 'fiit' is no command; did you mean 'fit'?"),
        (["--hepl"], 2, "error: '--hepl' is no command, which comes before its options; did you mean '--help'?"),
        (["-c", QUICKSTART, "fit"], 2, "error: '-c' is no command, which comes before its options (swirl [-h] {fit,"),
        ([], 2, "error: no command is given (swirl [-h] {fit,"),
        (["report"], 2, "error: the following arguments are required: RUN (all options: swirl report --help)"),
    ],
)
def test_what_trains_nothing_does_not_even_import_torch(args, code, told):
    ended, stderr, imported = alone(*args)
    assert (ended, imported) == (code, [])
    assert stderr.startswith(told)
    assert bool(stderr) == bool(told)


@pytest.mark.parametrize("module", ["results.report", "prepare.edit_corpora", "prepare.vqgan", "cli"])
def test_a_module_of_its_own_ends_in_one_line_too(tmp_path, module):
    missing = {"prepare.edit_corpora": [tmp_path / "out.jsonl", "--aurora", tmp_path / "none"]}
    done = run_module(f"swirl_lightning.{module}", *missing.get(module, [tmp_path / "none"]))
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")


def test_the_other_commands_suggest_the_nearest_option_too(capsys):
    with pytest.raises(SystemExit) as end:
        here("collapse", "run", "--bach_size", "3")
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: unrecognized arguments: --bach_size 3; did you mean '--batch_size'?")
    with pytest.raises(SystemExit):
        here("export", "run", "--tto", "folder")  # the option that is missing is the mistyped one
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: unrecognized arguments: --tto; did you mean '--to'?")


def test_help_names_every_command(capsys):
    here("--help")
    told = capsys.readouterr().out
    assert all(f"\n  {name} " in told for name in COMMANDS)


def test_the_help_of_every_command_fits_a_screen_has_an_example_and_imports_no_torch():
    """All in one process, as is what each says of an option that it does not have."""
    done = subprocess.run(
        [sys.executable, "-c", HELPED],
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "80"},
    )
    assert done.returncode == 0, done.stderr
    refused = done.stderr.splitlines()
    assert len(refused) == len(COMMANDS), refused
    for command, line in zip(COMMANDS, refused, strict=True):
        assert re.match(rf"error: .* \(all options: swirl {command} --help", line), line
    told = dict(zip([*COMMANDS, "planning"], done.stdout.split("\0"), strict=False))
    assert len(told) == len(COMMANDS) + 1
    for name, text in told.items():
        words, imported = text.rsplit("imported:", 1)
        command = f"swirl {name}" if name in COMMANDS else "python -m recipes.planning"
        assert words.startswith(f"usage: {command} "), name
        assert "[-h]" not in words, name
        assert f"example:\n  {command} " in words, name
        lines = words.splitlines()
        assert len(lines) <= 40, (name, len(lines))
        assert max(map(len, lines)) <= 80, (name, max(lines, key=len))
        assert name == "planning" or imported.strip() == "False", name


@pytest.mark.parametrize("command", ["fit", "test"])
def test_the_short_help_names_options_that_there_are(command, capsys):
    here(command, "-h")
    named = re.findall(r"^  (--[\w.]+) (\w+)  ", capsys.readouterr().out.split("more:")[0], flags=re.M)
    assert len(named) >= 8
    values = {"N": "3", "A": "cpu", "FOLDER": "runs/x", "FILE": "x.ckpt", "last": "last", "MODES": "[greedy]"}
    with pytest.raises(SystemExit) as end:
        here(command, "-c", QUICKSTART, *(f"{name}={values[kind]}" for name, kind in named), "--print_config")
    assert end.value.code == 0
    assert "seed_everything: 3" in capsys.readouterr().out
    with pytest.raises(SystemExit) as end:
        here(command, "--help_all")
    assert end.value.code == 0
    every = capsys.readouterr().out
    assert all(f"  {name} " in every for name in ("--ckpt_path", "--trainer.max_epochs"))


@pytest.fixture
def refused(capsys):
    """The one line of an error."""

    def run(*args):
        with pytest.raises(SystemExit) as end:
            here("fit", *args)
        told = capsys.readouterr().err if isinstance(end.value.code, int) else f"{end.value.code}\n"
        (line,) = [line for line in told.splitlines() if "Seed set" not in line]
        assert len(line) < 400, line
        return line

    return run


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["--trainer.max_epohcs", "3"], "trainer.max_epohcs is no option; did you mean 'trainer.max_epochs'?"),
        (["--phase_swtich.iterations", "3"], "did you mean 'phase_switch.iterations'?"),
        (["--data.batchsize", "3"], "data.batchsize is no option of MiniGrid; did you mean 'data.batch_size'?"),
        (["--model.backbone.dtyp", "x"], "model.backbone.dtyp is no option of Liquid; did you mean '.*.dtype'?"),
        (["--model.grpo.epsilon", "abc"], "model.grpo.epsilon: Expected float. Got value: abc"),
        (["--model.reward.floor=-5"], "model.reward: options of a class, and no class: name it, too"),
        (["--model.reward", "Foo"], "model.reward: 'Foo' is no class path"),
        (["--data", "MiniGird"], "data: 'MiniGird' is no class path (package.Class); did you mean 'MiniGrid'?"),
        (["--model.backbone.class_path", "Liqid"], "model.backbone: 'Liqid' is no class .*; did you mean 'Liquid'?"),
        (["--data", "TextWorld", "--data.data_dir", "null"], "data.data_dir must not be null: leave it out for"),
        (["--model.backbone.quantization", "int8"], "quantization must be 'nf4' or null, got 'int8'"),
        (["--trainer.precision", "half"], "trainer.precision: Expected .*'bf16-mixed'"),
        (["--trainer.strategy", "ddp_spawn", "--trainer.devices", "2"], "trainer.strategy would send .* use ddp"),
        (["extra"], "extra is no option"),
        (["--trainer.accumulate_grad_batches", "0"], r"trainer.accumulate_grad_batches must lie in [1, inf), got 0"),
        (["--trainer.accumulate_grad_batches", str(10**25)], "trainer.accumulate_grad_batches must lie in"),
        (["--trainer.gradient_clip_val", "-1"], "trainer.gradient_clip_val must lie in [0, inf) or null, got -1"),
        (["--trainer.val_check_interval", "0"], "trainer.val_check_interval must lie in (0, inf), got 0"),
        (["--trainer.check_val_every_n_epoch", "0"], "trainer.check_val_every_n_epoch must lie in [1, inf) or null"),
        (["--trainer.log_every_n_steps", "-1"], "trainer.log_every_n_steps must lie in"),
        (["--trainer.num_sanity_val_steps", "-2"], "trainer.num_sanity_val_steps must lie in"),
        (["--trainer.devices", "99999999"], "trainer.devices must lie in"),
        (["--trainer.num_nodes", "99999999"], "trainer.num_nodes must lie in"),
        (["--trainer.min_steps", "-3"], "trainer.min_steps must lie in"),
        (["--seed_everything", "-1"], "seed_everything: -1 is not in bounds"),
    ],
)
def test_an_option_of_the_command_line(refused, args, told):
    assert _matches(refused("-c", QUICKSTART, *args), told)


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("modle", 3, "modle is no option; did you mean 'model'?"),
        ("trainer/maxepochs", 3, "did you mean 'trainer.max_epochs'?"),
        ("model/init_args/grpo/epsilonn", 3, "model.grpo.epsilonn is no option of SWIRL; .* 'model.grpo.epsilon'?"),
        ("model/init_args/backbone/init_args/dtyp", "x", "model.backbone.dtyp is no option of Liquid; did you mean"),
        ("model/init_args/backbone/class_path", "swirl_lightning.backbones.Liquidd", "did you mean 'Liquid'?"),
        ("model/init_args/optim/fwm/lr", "fast", "model.optim.fwm.lr: Expected float. Got value: fast"),
        ("data/init_args/world_seed", None, "data.world_seed must not be null"),
        ("model/init_args/backbone/init_args/dtype", None, "model.backbone.dtype must not be null"),
        ("data/init_args/batchsize", 3, "did you mean 'data.batch_size'?"),
        ("trainer/callbacks", [{"class_path": "swirl_lightning.callbacks.Result"}], "did you mean 'Results'?"),
        ("model/init_args/lora", 3, "model.lora must be a mapping of its options, got 3: leave it out for defaults"),
        ("model/init_args/grpo", None, "model.grpo must be a mapping of its options, got None"),
        ("model/init_args/optim", None, "model.optim must be a mapping of its options, got None"),
    ],
)
def test_a_key_of_the_configuration(refused, tmp_path, key, value, told):
    settings = yaml.safe_load(QUICKSTART.read_text())
    at = settings
    *path, last = key.split("/")
    for part in path:
        at = at[part]
    at[last] = value
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(settings))
    assert _matches(refused("-c", tmp_path / "c.yaml"), told)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this is about a machine without a GPU")
def test_a_device_that_is_not_there_is_one_line(refused):
    assert "gpu" in refused("-c", QUICKSTART, "--trainer.accelerator", "gpu")


def _matches(line, told):
    """``told`` is what the line has, with ``.*`` for anything between."""
    at = 0
    for part in told.split(".*"):
        found = line.find(part, at)
        if found < 0:
            return False
        at = found + len(part)
    return line.startswith("error: ")


def test_an_error_steers_no_terminal(monkeypatch):
    """It may quote a file: no control character of that one reaches the terminal."""
    monkeypatch.delenv("SWIRL_TRACEBACK", raising=False)

    def main():
        raise ValueError("base \x1b[31m of\r\n  a checkpoint")

    with pytest.raises(SystemExit) as end:
        run_command(main)
    assert end.value.code == "error: base  [31m of \n  a checkpoint"


def test_letters_that_a_file_has_no_code_for_end_nothing(monkeypatch, tmp_path):
    """Windows writes a redirected output in cp1252, which has no ŷ."""
    with open(tmp_path / "log", "w", encoding="cp1252") as log:
        monkeypatch.setattr("sys.stdout", log)
        run_command(lambda: print("logQ(z|x,ŷ)"))
    assert (tmp_path / "log").read_text() == "logQ(z|x,?)\n"


class Failing(list):
    """Rows of which the third one ends the process that reads it, or cannot be read."""

    def __init__(self, rows, kill):
        super().__init__(rows)
        self.kill = kill

    def __getitem__(self, index):
        if index == 2 and self.kill:
            os.kill(os.getpid(), signal.SIGKILL)
        if index == 2:
            try:
                raise KeyError("inner")
            except KeyError as error:
                raise OSError("cannot read the image c.png:\nit is cut") from error
        return super().__getitem__(index)


@pytest.mark.parametrize(
    ("kill", "told"),
    [
        (True, r"error: a process that loads data has ended \(DataLoader worker .*: lower num_workers of the data; .*"),
        (False, r"error: cannot read the image c\.png:\nit is cut"),
    ],
)
def test_an_error_in_a_process_that_loads_data_is_one_line(kill, told, monkeypatch):
    monkeypatch.delenv("SWIRL_TRACEBACK", raising=False)
    rows = Failing([Transition("a", "b", "c", str(n)) for n in range(4)], kill)
    with pytest.raises(SystemExit) as end:
        run_command(lambda: list(TransitionLoader(rows, batch_size=1, num_workers=1)))
    assert re.fullmatch(told, end.value.code)


class NoText:
    def __len__(self):
        return 2

    def __getitem__(self, place):
        return b"\xff".decode()


def test_an_error_that_torch_cannot_make_anew_is_one_line_too(monkeypatch):
    monkeypatch.delenv("SWIRL_TRACEBACK", raising=False)
    with pytest.raises(SystemExit, match="error: 'utf-8' codec can't decode byte 0xff in position 0"):
        run_command(lambda: list(DataLoader(NoText(), num_workers=1)))


def test_no_command_shows_what_a_library_says_to_its_developers():
    code = "from swirl_lightning.console.run import run_command as run; "
    code += "from swirl_lightning.engine.quantization import import_bitsandbytes; run(import_bitsandbytes)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_preparing_command_tells_a_mistyped_option_before_it_imports_the_libraries():
    done = subprocess.run([sys.executable, "-c", PREPARES], capture_output=True, text=True)
    *ended, imported = done.stdout.splitlines()
    names = ["edit_corpora", "frame_pairs", "labelled_clips", "scienceworld", "video_pairs", "vqgan"]
    assert ended == [f"{name} 2" for name in names], done  # smollm2 is swirl fetch
    assert imported == "imported:"
    lines = done.stderr.splitlines()
    assert len(lines) == len(ended)
    for name, line in zip(ended, lines, strict=True):
        assert line.startswith("error: unrecognized arguments: --bogus"), name


@pytest.mark.parametrize("command", [["fit", "--data.warmup"], ["report"], ["label"]])
def test_a_name_that_is_no_utf_8_is_told(command, monkeypatch):
    """No configuration could hold it: it was found when the base had been loaded."""
    monkeypatch.setattr("sys.argv", ["swirl", *command, "runs/\udcff.jsonl"])
    with pytest.raises(SystemExit) as end:
        run_command(main)
    assert end.value.code == r"error: b'runs/\xff.jsonl' is no UTF-8: rename the file or folder"
