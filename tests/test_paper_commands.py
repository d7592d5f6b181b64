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

ROOT = Path(__file__).parents[1]
COMMANDS = [
    (row.split("|")[1].strip(), command)
    for row in (ROOT / "docs" / "paper_to_code.md").read_text(encoding="utf-8").splitlines()
    for command in re.findall(r"`(swirl (?:fit|test) [^`]*)`", row)
]
TRAINED = {
    "SFT (Tables 1 to 3 and 6)": ("SFT", 1),
    "IDM→FWM (Tables 1 to 3)": ("IDM→FWM", 2),
    "FWM→IDM (Table 6)": ("FWM→IDM", 2),
    "iterative (Tables 1 to 3 and 6)": ("SWIRL iteration 3", 7),
    "iterative, shared weights": ("SWIRL iteration 3", 7),
    "Bootstrap (Table 1), SFT-Continue (Table 7)": ("Bootstrap iteration 1", 2),
    "SFT-Merge (Table 7)": ("Bootstrap iteration 1", 2),
    "by number of pairs (Figure 3, Table 7)": ("SWIRL iteration 1", 3),
    "by group size (Table 10)": ("IDM→FWM", 2),
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
    """The command with the small config in the place of the shipped one, and one step where it has a hundred."""
    _, task, *words = shlex.split(command.replace("warmup: 100", "warmup: 0"))
    configs = [words[n + 1] for n, word in enumerate(words) if word == "-c"]
    options = words[2 * len(configs) :]
    if task == "fit":
        config = small(folder, configs[0])
    else:  # a run's config, or one that no run has yet
        config = warm / "config.yaml" if configs[0].startswith("runs/") else small(folder, configs[0])
        options += ["--trainer.default_root_dir", folder]
    here(task, "-c", config, *(warm / "checkpoints" / "last.ckpt" if word == "W" else word for word in options))


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


def test_every_row_with_a_command_is_tried():
    assert {row for row, _ in COMMANDS} == TRAINED.keys() | TESTED.keys()
