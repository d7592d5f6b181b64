"""Runs of the tiny Liquid in MiniGrid and of the small Gemma, by the command and as short as can be."""

from __future__ import annotations

from pathlib import Path

from support.cli import config, here

ROOT = Path(__file__).parents[2]


def minigrid_run(folder: Path) -> Path:
    """The paper's recipe in MiniGrid, two steps of its warm-up."""
    sizes = {"warmup_size": 16, "state_only_size": 16, "validation_size": 4, "test_size": 8}
    here(
        "fit",
        "-c",
        ROOT / "configs" / "minigrid_paper.yaml",
        *(word for name, size in sizes.items() for word in (f"--data.{name}", size)),
        *("--phase_switch.warmup_epochs", "1", "--phase_switch.iterations", "0"),
        *("--trainer.enable_progress_bar", "false", "--trainer.limit_val_batches", "0"),
        *("--trainer.default_root_dir", folder),
        "--trainer.callbacks+=support.cli.NoMemoryReport",
    )
    keep_last(folder)
    return folder


def keep_last(run: Path) -> None:
    """Leave a run one checkpoint: of several, each command reads all to find the last."""
    for path in (run / "checkpoints").glob("*.ckpt"):
        if path.name != "last.ckpt":
            path.unlink()


def digits_run(folder: Path, gemma: Path) -> Path:
    """A warm-up in a world of two digits, after which the IDM names actions."""
    changes = {
        "phase_switch": {"warmup_epochs": 8, "iterations": 0},
        "trainer/limit_val_batches": 0,
        "trainer/callbacks": [],
        "model/init_args/optim": {"warmup": {"lr": 1e-2}},
    }
    here("fit", "-c", config(folder, gemma, **changes))
    return folder / "runs" / "r"
