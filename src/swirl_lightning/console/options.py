"""Parser of the options of a subcommand that is none of LightningCLI's."""

from __future__ import annotations

import argparse
import re
import sys
from typing import Any, NoReturn

from swirl_lightning.console.run import nearest


class OneLineParser(argparse.ArgumentParser):
    """argparse's parser, whose errors are one line with the nearest known name, and which takes no abbreviations."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **options})
        self._given: list[str] = []

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse as argparse does."""
        self._given = list(sys.argv[1:] if args is None else args)
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """Exit with one line; what was mistyped comes before what is missing, which may be the same option."""
        known = self._option_string_actions
        given = [found[0] for token in self._given if (found := re.match(r"--[a-zA-Z][\w-]*", token))]
        strange = next((option for option in given if option not in known), None)
        if strange and message.startswith("the following arguments are required"):
            message = f"unrecognized arguments: {strange}"
        if (found := re.match(r"unrecognized arguments: (--[\w-]+)", message)) is not None:
            message += nearest(found[1], known)
        self.exit(2, f"error: {message} (all options: {self.prog} --help)\n")


def subcommand_parser(
    name: str, usage: str, about: str, example: str, program: str = "swirl {}"
) -> argparse.ArgumentParser:
    """Make the parser of ``swirl <name>``, whose errors are one line and whose help ends with an example.

    Args:
        name: of the subcommand.
        usage: its arguments, without the options.
        about: what it does, in lines of at most 80 characters.
        example: a whole command.
        program: what is typed before the arguments, ``{}`` for the name; of a recipe, another than ``swirl``.
    """
    return OneLineParser(
        prog=program.format(name),
        usage=f"{program.format(name)} {usage} [options]",
        description=about,
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
