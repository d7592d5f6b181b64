"""The rows that SWIRL must beat, side by side: same base, same data, same budget, several seeds.

    python -m recipes.minigrid_table --seeds 0 1 2

Each seed is warmed up once (the SFT row); every other row goes on from that checkpoint. Finished parts
are not repeated. Writes ``table.json`` and prints mean ± standard error over seeds, paired differences
to SFT included.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from swirl_lightning.results.table import COLUMNS, FILE, read

CONFIG = "configs/minigrid_quickstart.yaml"
MODEL = "--model.init_args"
ROWS: dict[str, list[str]] = {
    "Bootstrap": ["--phase_switch.phases", "[bootstrap]"],
    "SWIRL (paper)": [f"{MODEL}.anchor_weight", "0"],
    "SWIRL + anchor": [],
    "shuffled rewards": [
        f"{MODEL}.anchor_weight",
        "0",
        f"{MODEL}.reward",
        "swirl_lightning.training.rewards.ShuffledWithinGroup",
    ],
}
"""Row -> what differs from the config."""


def swirl(out: Path, seed: int, row: str, command: str, *args: str) -> None:
    """One run of the command line; its output goes to a log file beside the run."""
    run = out / f"seed{seed}" / row.replace(" ", "_")
    run.mkdir(parents=True, exist_ok=True)
    line = [sys.executable, "-m", "swirl_lightning.cli", command, "-c", CONFIG, *args]
    line += ["--seed_everything", str(seed), f"{MODEL}.seed", str(seed), "--data.init_args.seed", str(seed)]
    line += ["--trainer.enable_progress_bar", "false", "--trainer.default_root_dir", str(run)]
    with (run / f"{command}.log").open("w") as log:
        done = subprocess.run(line, stdout=log, stderr=subprocess.STDOUT, env={**os.environ, "OMP_NUM_THREADS": "1"})
    if done.returncode:
        raise SystemExit(f"{row}, seed {seed}: {command} failed; see {run / f'{command}.log'}")


def run_seed(out: Path, seed: int, split: str, rows: list[str]) -> None:
    """All rows of one seed."""
    sft = out / f"seed{seed}" / "SFT"
    start = sft / "checkpoints" / "last.ckpt"
    command = "validate" if split == "validation" else "test"
    if not (sft / "fit.done").exists():
        swirl(out, seed, "SFT", "fit", "--phase_switch.iterations", "0")
        (sft / "fit.done").touch()
    finish(out, seed, "SFT", command, split)
    if split not in read(out / f"seed{seed}" / "best_of_8" / FILE):
        args = [f"{MODEL}.evaluation.best_of", "8", "--ckpt_path", str(start)]
        swirl(out, seed, "best of 8", command, *args)
    for row in rows:
        folder = out / f"seed{seed}" / row.replace(" ", "_")
        if not (folder / "fit.done").exists():
            swirl(out, seed, row, "fit", "--ckpt_path", str(start), *ROWS[row])
            (folder / "fit.done").touch()
        finish(out, seed, row, command, split)


def finish(out: Path, seed: int, row: str, command: str, split: str) -> None:
    """Evaluate the last checkpoint of a row."""
    folder = out / f"seed{seed}" / row.replace(" ", "_")
    if command == "test" and split not in read(folder / FILE):
        swirl(out, seed, row, command, "--ckpt_path", str(folder / "checkpoints" / "last.ckpt"))


def gather(out: Path, seeds: list[int], split: str) -> dict[str, dict[str, list[float]]]:
    """Row -> metric -> one value a seed."""
    table: dict[str, dict[str, list[float]]] = {}
    for row in ["SFT", "best of 8", *ROWS]:
        found = [read(out / f"seed{s}" / row.replace(" ", "_") / FILE).get(split) for s in seeds]
        if all(found):
            last = [list(rows.values())[-1] for rows in found if rows]
            table[row] = {key: [values[key] for values in last] for key in last[0]}
    return table


def mean_and_error(values: list[float]) -> tuple[float, float]:
    """Mean and its standard error over seeds."""
    mean = sum(values) / len(values)
    if len(values) < 2:
        return mean, math.nan
    return mean, math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1) / len(values))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("runs/minigrid_table"))
    parser.add_argument("--split", choices=["validation", "test"], default="test")
    parser.add_argument("--rows", nargs="*", choices=list(ROWS), default=list(ROWS))
    args = parser.parse_args()
    for seed in args.seeds:
        run_seed(args.out, seed, args.split, args.rows)
    table = gather(args.out, args.seeds, args.split)
    (args.out / f"table_{args.split}.json").write_text(json.dumps({"seeds": args.seeds, "rows": table}, indent=2))
    view = Table("", *COLUMNS.values(), title=f"MiniGrid, {args.split}, {len(args.seeds)} seeds, mean ± standard error")
    for row, metrics in table.items():
        view.add_row(row, *[cell(key, metrics[key]) for key in COLUMNS])
        if row != "SFT":
            paired = {k: [a - b for a, b in zip(metrics[k], table["SFT"][k], strict=True)] for k in COLUMNS}
            view.add_row("  - SFT", *[cell(key, paired[key], signed=True) for key in COLUMNS])
    Console(width=140).print(view)


def cell(key: str, values: list[float], signed: bool = False) -> str:
    """One figure: shares in per cent, log-probabilities in nats."""
    scale, digits = (100, 1) if key.startswith(("fwm/", "idm/")) else (1, 3)
    mean, error = mean_and_error([scale * v for v in values])
    return f"{mean:{'+' if signed else ''}.{digits}f} ± {error:.{digits}f}"


if __name__ == "__main__":
    main()
