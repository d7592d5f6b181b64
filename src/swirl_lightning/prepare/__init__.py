"""Commands that prepare data and bases: ``python -m swirl_lightning.prepare.<name>``."""

from __future__ import annotations

from argparse import ArgumentParser

from swirl_lightning.console.options import subcommand_parser

PAIRS = "pairs.jsonl"
"""File of pairs in the folder that a command writes."""


def command_parser(name: str, arguments: str, about: str, example: str) -> ArgumentParser:
    """Make the parser of a command; ``example`` is what may be typed behind its name."""
    program = "python -m swirl_lightning.prepare.{}"
    return subcommand_parser(name, arguments, about, f"{program.format(name)} {example}", program)
