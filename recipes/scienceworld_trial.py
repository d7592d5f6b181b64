"""ScienceWorld with several seeds: the test split after the warm-up and after one SWIRL iteration.

    python -m recipes.scienceworld_trial --seeds 0 1 2

Trains with ``configs/scienceworld_tiny.yaml``, tests both checkpoints, prints a Markdown table of means over
seeds with standard errors. Finished parts are not repeated, so an interrupted trial goes on.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev

import yaml

from swirl_lightning.console.options import OneLineParser
from swirl_lightning.console.run import run_command
from swirl_lightning.results.table import FILE, read

METRICS = {
    "fwm/greedy/exact_match": "exact",
    "fwm/greedy/rouge_l": "ROUGE-L",
    "fwm/greedy/embedding_similarity": "embedding similarity",
    "fwm/greedy/bleu_char": "BLEU of characters, of 100",
    "fwm/sampled/rouge_l": "ROUGE-L, sampled",
    "idm/greedy/exact_match": "IDM exact",
    "identifiability": "log Q(z; x, ŷ)",  # an unescaped bar would end the cell
}


def run(config: Path, folder: Path, seed: int, extra: Sequence[str]) -> dict[str, dict[str, float]]:
    """Train and test one seed; returns the rows of its test table."""
    settings = [
        *("--seed_everything", str(seed), "--model.init_args.seed", str(seed), "--data.init_args.seed", str(seed)),
        *("--trainer.default_root_dir", str(folder / f"seed{seed}")),
        *extra,
    ]
    checkpoints = folder / f"seed{seed}" / "checkpoints"
    if not (folder / f"seed{seed}" / "trained").is_file():
        resumed = ["--ckpt_path", str(checkpoints / "last.ckpt")] if (checkpoints / "last.ckpt").is_file() else []
        _swirl("fit", config, [*settings, *resumed])
        (folder / f"seed{seed}" / "trained").touch()
    trained = yaml.safe_load((folder / f"seed{seed}" / "config.yaml").read_text())  # with the changes of ``extra``
    warmup = trained["phase_switch"]["warmup_epochs"]
    table = folder / f"seed{seed}" / FILE
    for count, checkpoint in enumerate((f"epoch={warmup - 1}.ckpt", "last.ckpt"), start=1):
        if len(read(table).get("test", {})) < count:
            _swirl("test", config, [*settings, "--ckpt_path", str(checkpoints / checkpoint)])
    return read(table)["test"]


def markdown(seeds: list[dict[str, dict[str, float]]]) -> str:
    """Write mean ± standard error over seeds of each row as Markdown."""
    rows = list(dict.fromkeys(name for table in seeds for name in table))
    lines = ["| | " + " | ".join(METRICS.values()) + " |", "|---" * (len(METRICS) + 1) + "|"]
    for name in rows:
        cells = []
        for key in METRICS:
            values = [table[name][key] for table in seeds if key in table.get(name, {})]
            error = f" ± {stdev(values) / len(values) ** 0.5:.3f}" if len(values) > 1 else ""
            cells.append(f"{mean(values):.3f}{error}" if values else "–")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _swirl(command: str, config: Path, arguments: Sequence[str]) -> None:
    line = [sys.executable, "-m", "swirl_lightning", command, "-c", str(config), *arguments]
    if code := subprocess.run(line).returncode:
        raise ChildProcessError(f"swirl {command} of {config} failed (exit code {code}): see above")


def main(args: list[str] | None = None) -> None:
    """Entry point of the command; unknown options go to ``swirl fit`` and ``swirl test``."""
    parser = OneLineParser(prog="python -m recipes.scienceworld_trial", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--config", type=Path, default=Path("configs/scienceworld_tiny.yaml"))
    parser.add_argument("--out", type=Path, default=Path("runs/scienceworld_tiny"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options, extra = parser.parse_known_args(args)
    tables = [run(options.config, options.out, seed, extra) for seed in options.seeds]
    text = markdown(tables)
    (options.out / "table.md").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    run_command(main)
