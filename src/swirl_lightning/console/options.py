"""Parser of the options of a subcommand that is none of LightningCLI's."""

from __future__ import annotations

import argparse
import re
from typing import NoReturn

from swirl_lightning.console.run import nearest


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        known = ""
        if (found := re.match(r"unrecognized arguments: (--[\w-]+)", message)) is not None:
            known = nearest(found[1], self._option_string_actions)
        self.exit(2, f"error: {message}{known} (all options: {self.prog} --help)\n")


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
    return _Parser(
        prog=program.format(name),
        usage=f"{program.format(name)} {usage} [options]",
        description=about,
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
