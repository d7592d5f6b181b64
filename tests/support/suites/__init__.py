"""Six evaluation suites: small data in the official layouts, and the YAML of a ``swirl test`` on them."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from lightning.pytorch import Callback

from support.image_world import clip_folder, write_aurora

HOMES = {
    "aurora": "Aurora",
    "bytemorph": "ByteMorph",
    "worldprediction": "WorldPrediction",
    "scienceworld": "ScienceWorld",
    "mind2web": "Mind2Web",
    "stabletoolbench": "StableToolBench",
}
"""Module and class of each suite; the first three have images as states."""
IMAGE_SUITES = list(HOMES)[:3]


def write_data(name: str, root: Path) -> dict[str, Any]:
    """Writes a suite's data, an odd number of samples, into ``root``; returns options of its DataModule."""
    if name == "aurora":
        write_aurora(root, per_task=3)
    elif name == "bytemorph":
        pytest.importorskip("pyarrow", reason="ByteMorph's file is parquet")
        from support.suites.bytemorph import write

        write(root)
    elif name == "worldprediction":
        pytest.importorskip("av", reason="WorldPrediction's states are frames of videos")
        from support.suites.worldprediction import sample, write

        short = {"candidates": [["a"], ["b"]]}
        write(root, {"COIN": {"x": sample(0), "y": sample(2)}, "IKEA-ASM": {"z": sample(1, "two", **short)}})
        return {"ground_truth": "0", "max_turns": 2}
    elif name == "scienceworld":
        from support.suites.scienceworld import step, write

        tasks = ("boil", "melt", "grow")
        write(root, [step(task, v, "test", n) for task in tasks for v in (5, 6, 7) for n in range(3)])
        return {"per_task": True}
    elif name == "mind2web":
        pytest.importorskip("lxml", reason="Mind2Web needs lxml")
        from support.suites.mind2web import task, write

        for split in ("task", "website", "domain"):
            write(root / f"test_{split}" / f"test_{split}_0.json", [task(f"{split}{n}", n + 2) for n in range(2)])
    else:
        pytest.importorskip("nltk", reason="StableToolBench's metric needs nltk")
        from support.suites.stabletoolbench import mirror, write
        from swirl_lightning.benchmarks.stabletoolbench import TEST_FILES

        for number, file in enumerate(TEST_FILES.values()):
            write(root / file, [mirror(100 * number + n) for n in range(number + 1)])
    return {}


def write_config(name: str, folder: Path, base: str | Path, **options: Any) -> Path:
    """Data and ``config.yaml`` of a suite in ``folder``; its run is ``folder / "run"``.

    Args:
        name: of the suite.
        folder: made where it is missing.
        base: a Liquid for the image suites, which get a small CLIP, too; any text model for the others.
        options: of the DataModule.
    """
    (folder / "data").mkdir(parents=True)
    found = write_data(name, folder / "data")
    backbone: dict[str, Any] = {"model_name_or_path": str(base), "dtype": "float32", "quantization": None}
    if name in IMAGE_SUITES:
        family, found["clip"] = "Liquid", str(clip_folder(folder / "clip"))
        backbone |= {"max_action_tokens": 5}
    else:
        family = "TextLLM"
        backbone |= {"max_state_tokens": 24, "max_action_tokens": 8}
    home = f"swirl_lightning.benchmarks.{name}.{HOMES[name]}"
    settings = {
        "seed_everything": 0,
        "trainer": {
            "accelerator": "cpu",
            "enable_progress_bar": False,
            "logger": False,
            "default_root_dir": str(folder / "run"),
            "callbacks": [
                {"class_path": "swirl_lightning.callbacks.Predictions"},
                {"class_path": "swirl_lightning.callbacks.Results"},
            ],
        },
        "model": {
            "class_path": "swirl_lightning.SWIRL",
            "init_args": {
                "backbone": {"class_path": f"swirl_lightning.backbones.{family}", "init_args": backbone},
                "evaluation": {"modes": ["sampled"], "best_of": 2},
            },
        },
        "data": {
            "class_path": home,
            "init_args": {"data_dir": str(folder / "data"), "eval_batch_size": 2, **found, **options},
        },
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


class KillAt(Callback):
    """SIGKILL at the start of a batch of ``swirl test``, as soon as the judge's cache has so many answers."""

    def __init__(self, batch: int, answers: int = 0, cache_dir: str = "") -> None:
        self.batch, self.answers, self.cache_dir = batch, answers, Path(cache_dir)

    def on_test_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == self.batch:
            while len(list(self.cache_dir.rglob("*.json"))) < self.answers:
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGKILL)
