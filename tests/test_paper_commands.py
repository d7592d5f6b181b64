"""The commands of docs/paper_to_code.md, each as it stands there, on a tiny base and a small world."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import torch
import yaml

from support.cli import here
from swirl_lightning.results.table import read
from swirl_lightning.schedule import OptimConfig

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "paper_to_code.md").read_text(encoding="utf-8")
COMMANDS = [
    (row.split("|")[1].strip(), command)
    for row in PAGE.splitlines()
    for command in re.findall(r"`(swirl (?:fit|test) [^`]*)`", row)
]
LOOPS = re.findall(r"```bash\nfor n in ([\d ]+); do\n(.*?)done\n(swirl report [^\n]*)\n```", PAGE, flags=re.DOTALL)
"""Values, commands and report of each loop."""
TRAINED = {
    "SFT (Tables 1 to 3 and 6)": ("SFT", 1),
    "IDM→FWM (Tables 1 to 3)": ("IDM→FWM", 2),
    "FWM→IDM (Table 6)": ("FWM→IDM", 2),
    "iterative (Tables 1 to 3 and 6)": ("SWIRL iteration 3", 7),
    "iterative, shared weights": ("SWIRL iteration 3", 7),
    "Bootstrap (Table 1), SFT-Continue (Table 7)": ("Bootstrap iteration 1", 2),
    "SFT-Merge (Table 7)": ("Bootstrap iteration 1", 3),  # as many labelled triples as pairs
    "text (Table 4)": ("SWIRL iteration 2", 5),
}
"""Row of the table -> label of the last weights, and optimiser steps: one for each phase."""
TESTED = {
    "AURORA-Bench": "SFT, shared weights",
    "best of 8 (Table 1)": "SFT, shared weights, best of 8",
    "GEdit-Bench (Table 5)": "SFT, shared weights",
    "zero-shot (Table 4)": "base",
}
SAME = ("lora", "shared_weights", "grpo", "sampling")


@pytest.fixture(scope="module")
def small(gemma_path):
    """A shipped config with its phases and GRPO, on a tiny base, two pairs and one epoch of warm-up."""
    backbone = {"model_name_or_path": str(gemma_path), "dtype": "float32", "quantization": None}
    backbone |= {"max_state_tokens": 4, "max_action_tokens": 5}

    def write(folder, source):
        given = yaml.safe_load((ROOT / source).read_text(encoding="utf-8"))
        trainer = {"accelerator": "cpu", "enable_progress_bar": False, "limit_val_batches": 0}
        trainer["callbacks"] = [{"class_path": "support.cli.NoMemoryReport"}]
        model = {key: value for key, value in given["model"]["init_args"].items() if key in SAME}
        model["backbone"] = {"class_path": "swirl_lightning.backbones.TextLLM", "init_args": backbone}
        config = {
            "trainer": trainer | {"default_root_dir": str(folder)},
            "phase_switch": given["phase_switch"] | {"warmup_epochs": 1},
            "model": {"class_path": "swirl_lightning.SWIRL", "init_args": model},
            "data": {"class_path": "support.world.Digits", "init_args": {"size": 2, "batch_size": 2}},
        }
        path = folder.parent / f"{folder.name}.yaml"
        path.write_text(yaml.safe_dump(config))
        return path

    return write


@pytest.fixture(scope="module")
def warm(small, tmp_path_factory):
    """The run of the warm-up, from which the others go on."""
    folder = tmp_path_factory.mktemp("runs") / "liquid_warmup"
    here("fit", "-c", small(folder, "configs/liquid_warmup.yaml"))
    return folder


def run(command, small, warm, folder):
    """The command with the small config in the place of the shipped one; a benchmark's overlay needs its data."""
    _, task, *words = shlex.split(command)
    configs = [words[n + 1] for n, word in enumerate(words) if word == "-c"]
    options = [*words[2 * len(configs) :], "--trainer.default_root_dir", folder]
    if task == "fit":
        config = [small(folder, configs[0]), *(ROOT / overlay for overlay in configs[1:])]
        for phase in ("fwm", "idm"):  # a phase has one step here
            options += [f"--model.optim.{phase}.warmup", "0"]
    else:  # a run's config, or one that no run has yet
        config = [warm / "config.yaml" if configs[0].startswith("runs/") else small(folder, configs[0])]
    layers = [word for path in config for word in ("-c", path)]
    here(task, *layers, *(warm / "checkpoints" / "last.ckpt" if word == "W" else word for word in options))


@pytest.mark.parametrize(("row", "command"), [c for c in COMMANDS if " fit " in c[1]], ids=lambda value: value[:40])
def test_a_row_is_trained_by_its_command(row, command, small, warm, tmp_path):
    label, steps = TRAINED[row]
    run(command, small, warm, tmp_path / "run")
    found = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert (found["swirl"]["label"], found["global_step"]) == (label, steps)


@pytest.mark.parametrize(("row", "command"), [c for c in COMMANDS if " test " in c[1]], ids=lambda value: value[:40])
def test_a_row_is_tested_by_its_command(row, command, small, warm, tmp_path, capsys):
    run(command, small, warm, tmp_path / "run")
    assert list(read(tmp_path / "run" / "results.json")["test"]) == [TESTED[row]]
    capsys.readouterr()


@pytest.fixture(scope="module")
def iterated(small, warm, tmp_path_factory):
    """The folder of the iterative run."""
    folder = tmp_path_factory.mktemp("iterated") / "liquid_iterative"
    run("swirl fit -c configs/liquid_iterative.yaml --ckpt_path W", small, warm, folder)
    return folder


SHOWN = {
    "runs/pairs": ["2 pairs", "4 pairs"],
    "runs/group": ["group size 2", "group size 4"],
    "runs/iterations": ["SWIRL iteration 1", "SWIRL iteration 2", "SWIRL iteration 3"],
}


def test_the_warm_ups_of_rates_fit_each_number_of_pairs():
    (values, commands, _), *_ = LOOPS
    shipped = yaml.safe_load((ROOT / "configs/liquid_iterative.yaml").read_text(encoding="utf-8"))
    size = shipped["data"]["init_args"]["pairs_per_step"]
    for phase in ("fwm", "idm"):
        given = re.search(rf"--model\.optim\.{phase}\.warmup (\S+)", commands)
        optim = OptimConfig(**shipped["model"]["init_args"]["optim"][phase] | {"warmup": float(given[1])})
        for n in values.split():
            optim.check(phase, int(n) // size)


@pytest.mark.parametrize(("values", "commands", "report"), LOOPS, ids=[loop[2] for loop in LOOPS])
def test_a_loop_gives_one_table_and_its_curves(values, commands, report, small, warm, iterated, tmp_path, capsys):
    """As it stands there, with small numbers in place of the paper's, and the data of the small world."""
    of_iterations = "$n.ckpt" in commands
    numbers = [int(n) - 4 for n in values.split()] if of_iterations else [2, 4]  # the small warm-up has 4 epochs less
    for n in numbers:
        for line in commands.replace("\\\n", " ").strip().splitlines():
            words = shlex.split(line.replace("$n", str(n)))
            places = {"W": warm / "checkpoints" / "last.ckpt", "configs/aurora.yaml": None}
            for word in words:
                if word.startswith("configs/liquid"):
                    places[word] = small(tmp_path / "unused", word)
                elif word.startswith("runs/"):
                    _, name, *rest = Path(word).parts
                    places[word] = (iterated if name == "liquid_iterative" else tmp_path / name).joinpath(*rest)
            found = [places.get(word, word) for word in words]
            without = [n for n, word in enumerate(found) if word is not None and found[n + 1 : n + 2] != [None]]
            here(*[found[n] for n in without][1:])
    folder = report.split()[-1]
    here("report", tmp_path / Path(folder).name)
    assert list(read(tmp_path / Path(folder).name / "results.json")["test"]) == SHOWN[folder]
    assert (tmp_path / Path(folder).name / "report.png").is_file()
    text = (tmp_path / Path(folder).name / "report.md").read_text()
    assert all(f"| {row} |" in text for row in SHOWN[folder])
    capsys.readouterr()


def test_the_collapse_checks_are_those_of_the_command(iterated, gemma_path, capsys):
    (command,) = re.findall(r"`(swirl collapse [^`]*)`", PAGE)
    places = {"runs/liquid_iterative": iterated, "gpt2": gemma_path}
    here(*[places.get(word, word) for word in shlex.split(command)[1:]])
    assert "SWIRL iteration 3: 2 actions, unique" in capsys.readouterr().out


def test_every_row_with_a_command_is_tried():
    assert {row for row, _ in COMMANDS} == TRAINED.keys() | TESTED.keys()
    assert [loop[2].split()[-1] for loop in LOOPS] == list(SHOWN)
    rows = PAGE.split("| paper | command |")[1].split("\n\n")[0].splitlines()[2:]
    assert all("`" in row or "loop below" in row for row in rows)  # none is without a command
