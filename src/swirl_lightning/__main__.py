"""The ``swirl`` command: finds out what is asked for, and imports no more than that needs."""

from __future__ import annotations

import os
import sys

from swirl_lightning.console.run import nearest, run_command
from swirl_lightning.console.training_help import ALL, training_help

HUGE_PAGES = "THP_MEM_ALLOC_ENABLE"
"""PyTorch's own switch, which it reads once, when the first tensor is made: large tensors in pages of 2 MiB."""

COMMANDS = {
    "fit": "train: the warm-up, then the phases",
    "validate": "score a checkpoint on the validation split",
    "test": "score a checkpoint on the test split, as a row of results.json",
    "predict": "write what a checkpoint predicts to files",
    "report": "put results of runs beside the paper's, as Markdown and HTML",
    "label": "write actions for unlabelled pairs, as JSON lines to train on",
    "simulate": "roll the world model forward from a state, beside the true simulator where there is one",
    "export": "write a run's models as a folder that others load: PEFT adapters, or whole weights",
    "push": "upload an exported folder to the Hugging Face hub",
    "collapse": "tell how diverse a run's latent actions are, iteration by iteration",
    "play": "act in the world model on a web page, several checkpoints side by side",
    "fetch": "bring a small pretrained base: swirl fetch smollm2 --to FOLDER",
}
USAGE = f"usage: swirl [-h] {{{','.join(COMMANDS)}}} ..."


def main(args: list[str] | None = None) -> None:
    """Entry point of the console script."""
    run_command(lambda: _run(args))


def _run(args: list[str] | None) -> None:
    given = sys.argv[1:] if args is None else args
    first = given[0] if given else ""
    if first in ("-h", "--help", ALL):
        print(_help())
    elif first == "report":
        from swirl_lightning.results.report import main as report

        report(given[1:])
    elif first == "fetch":
        from swirl_lightning.prepare.smollm2 import main as fetch

        fetch(given[1:])
    elif first not in COMMANDS:
        place = ", which comes before its options" if first.startswith("-") else ""
        wrong = (
            f"{first!r} is no command{place}{nearest(first, [*COMMANDS, '--help'])}" if first else "no command is given"
        )
        print(f"error: {wrong} ({USAGE.removeprefix('usage: ')})", file=sys.stderr)
        sys.exit(2)
    elif first in ("export", "push"):
        from swirl_lightning.share import commands as share

        getattr(share, first)(given[1:])
    elif first in ("label", "simulate", "collapse", "play"):
        os.environ.setdefault(HUGE_PAGES, "1")
        from swirl_lightning.use import commands

        getattr(commands, first)(given[1:])
    elif {"-h", "--help"} & set(given[1:]):
        print(training_help(first))
    else:
        os.environ.setdefault(HUGE_PAGES, "1")  # blocks that are mapped anew each time cost a fault a page
        from swirl_lightning.cli import swirl_cli  # only now: importing torch's users may make tensors

        swirl_cli(args)


def _help() -> str:
    lines = "\n".join(f"  {name:<10}{text}" for name, text in COMMANDS.items())
    return (
        f"{USAGE}\n\nWorld models from state-only data: SWIRL on PyTorch Lightning.\n\ncommands:\n{lines}\n\n"
        "Options of a command:  swirl COMMAND --help\nIts configuration:     swirl COMMAND -c FILE"
    )


if __name__ == "__main__":
    main()
