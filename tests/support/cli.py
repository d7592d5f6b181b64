"""The ``swirl`` command in this process, and the YAML of a small run."""

from __future__ import annotations

import yaml

from swirl_lightning.__main__ import main
from swirl_lightning.callbacks import MemoryReport


class NoMemoryReport(MemoryReport):
    """In place of the report, whose passes take longer than such a run."""

    def on_fit_start(self, trainer, pl_module):
        """Measure nothing."""


def config(tmp_path, model_path, **changes):
    """Write a run of six steps, two of each phase."""
    settings = {
        "seed_everything": 0,
        "trainer": {
            "accelerator": "cpu",
            "enable_progress_bar": False,
            "limit_val_batches": 1,
            "logger": {
                "class_path": "lightning.pytorch.loggers.TensorBoardLogger",
                "init_args": {"save_dir": str(tmp_path / "runs"), "name": "r", "version": ""},
            },
            "callbacks": [
                {"class_path": "swirl_lightning.callbacks.Results"},
                {
                    "class_path": "lightning.pytorch.callbacks.ModelCheckpoint",
                    "init_args": {
                        "save_last": True,
                        "save_top_k": -1,
                        "every_n_train_steps": 1,
                        "enable_version_counter": False,
                    },
                },
            ],
        },
        "phase_switch": {"warmup_epochs": 1, "iterations": 1},
        "model": {
            "class_path": "swirl_lightning.SWIRL",
            "init_args": {
                "backbone": {
                    "class_path": "swirl_lightning.backbones.text.TextLLM",
                    "init_args": {
                        "model_name_or_path": str(model_path),
                        "dtype": "float32",
                        "max_state_tokens": 4,
                        "max_action_tokens": 5,
                    },
                },
                "grpo": {"group_size": 4},
                "lora": {"r": 4, "dropout": 0.1},
                "optim": {"warmup": {"lr": 1e-3}, "fwm": {"lr": 1e-3}, "idm": {"lr": 1e-3}},
            },
        },
        "data": {"class_path": "support.world.Digits", "init_args": {"size": 16, "batch_size": 8}},
    }
    for key, value in changes.items():
        at = settings
        *path, last = key.split("/")
        for part in path:
            at = at[part]
        at[last] = value
    settings["trainer"]["callbacks"].append({"class_path": "support.cli.NoMemoryReport"})
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def longer_config(tmp_path, model_path, **changes):
    """Write one of twelve steps, which can be stopped within a phase."""
    return config(tmp_path, model_path, **{"data/init_args/size": 32, **changes})


def here(*args):
    """Run ``swirl args`` in this process, which has imported everything already."""
    main([str(arg) for arg in args])
