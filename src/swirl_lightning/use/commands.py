"""``swirl label`` and ``swirl simulate``: their options, and what they print."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from swirl_lightning.console.run import silence_libraries
from swirl_lightning.use.runs import Run

_RUN = "a run's folder, or a checkpoint"
_CONFIG = "config.yaml of a checkpoint that has none beside it"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message} (all options: {self.prog} --help)\n")


def _parser(name: str, usage: str, about: str, example: str) -> _Parser:
    return _Parser(
        prog=f"swirl {name}",
        usage=f"swirl {name} {usage} [options]",
        description=about,
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def label(args: Sequence[str] | None = None) -> None:
    """Entry point of ``swirl label``."""
    parser = _parser(
        "label",
        "RUN PAIRS --to FOLDER",
        "Actions for unlabelled pairs, by a run's IDM, as JSON lines to train on.",
        "swirl label runs/mine data/pairs.jsonl --to data/labels --min_agreement -0.1",
    )
    add = parser.add_argument
    add("run", metavar="RUN", help=_RUN)
    add("source", metavar="PAIRS", help="JSON lines, parquet, videos or frames in a folder, a split")
    add("--to", required=True, metavar="FOLDER", help="of labelled.jsonl; given again, it goes on there")
    add("--min_agreement", type=float, metavar="X", help="keep labels with mean log P(y | x, z) of X and above")
    add("--min_log_prob", type=float, metavar="X", help="keep labels with mean log Q(z | x, y) of X and above")
    add("--alternatives", type=int, default=0, metavar="N", help="write up to N other actions of each pair, too")
    add("--seconds", type=float, default=6.0, metavar="S", help="between the two frames of a video (6)")
    add("--step", type=int, default=1, metavar="N", help="frames between two in a folder of frames (1)")
    add("--batch_size", type=int, default=32, metavar="N", help="pairs at a time on each device (32)")
    add("--seed", type=int, default=0, metavar="N", help="of the alternatives (0)")
    add("--accelerator", default="auto", metavar="A", help="as in Lightning: cpu, gpu, auto (auto)")
    add("--devices", default="auto", metavar="N", help="as in Lightning (auto: every GPU, one process on a CPU)")
    add("--config", metavar="FILE", help=_CONFIG)
    options = vars(parser.parse_args(args))
    run = Run.find(options.pop("run"), options.pop("config"))
    silence_libraries()
    from swirl_lightning.use.labelling import LabelConfig, label_files

    source, folder, accelerator, devices = (options.pop(name) for name in ("source", "to", "accelerator", "devices"))
    summary = label_files(run, source, folder, LabelConfig(**options), accelerator, devices)
    from lightning.pytorch.utilities.rank_zero import rank_zero_only

    rank_zero_only(print)("\n".join(summary.lines()))


def simulate(args: Sequence[str] | None = None) -> None:
    """Entry point of ``swirl simulate``.

    Raises:
        ValueError: no action is given.
        OSError: the file of actions cannot be read.
    """
    parser = _parser(
        "simulate",
        "RUN --state STATE --action WORDS --to FOLDER",
        "Predicted states from a state and a list of actions, each step from the last\n"
        "prediction; beside the true states where the run's benchmark has a simulator.",
        'swirl simulate runs/mine --state test:0 --action "turn left" \\\n'
        '      --action "move forward" --branches 2 --best_of 4 --to runs/rollout',
    )
    add = parser.add_argument
    add("run", metavar="RUN", help=_RUN)
    add("--state", required=True, help="image or text file, words, or a split's record: test:0")
    add("--action", action="append", default=[], metavar="WORDS", help="one step; repeat it for the next ones")
    add("--actions", type=Path, metavar="FILE", help="a step per line, after those of --action")
    add("--to", required=True, metavar="FOLDER", help="for frames, contact sheet, GIF and steps.json")
    add("--branches", type=int, default=1, metavar="K", help="rollouts that differ by what is drawn (1)")
    add("--best_of", type=int, default=1, metavar="N", help="draws a step, the IDM chooses one (1)")
    add("--greedy", action="store_true", help="take the likeliest token at each place, draw nothing")
    add("--seed", type=int, default=0, metavar="N", help="of the draws (0)")
    add("--no_truth", action="store_true", help="leave out the true states")
    add("--config", metavar="FILE", help=_CONFIG)
    options = vars(parser.parse_args(args))
    run = Run.find(options.pop("run"), options.pop("config"))
    actions, file = options.pop("action"), options.pop("actions")
    if file is not None:
        actions += [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not actions:
        where = "" if file is None else f" in {file}"
        raise ValueError(f'no action is given{where}: add --action "WORDS", or --actions FILE with one a line')
    silence_libraries()
    import torch

    from swirl_lightning.use.simulation import SimulateConfig, simulate_files

    device = "cuda" if torch.cuda.is_available() else "cpu"
    state, folder = options.pop("state"), options.pop("to")
    found = simulate_files(run, state, actions, folder, SimulateConfig(**options), device)
    print("\n".join([*found.lines(), f"written: {folder}"]))
