"""Names of the options of LightningCLI's commands, to tell a mistyped one before the libraries are imported."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from swirl_lightning.console.run import nearest
from swirl_lightning.console.training_help import ALL

TABLE = Path(__file__).parents[1] / "assets" / "option_names.txt"
"""The names, one a line; a test compares them with the parser's, and ``make options`` writes them anew."""

_OURS = "swirl_lightning."
_CLASS = re.compile(r"class_path['\"]?\s*:\s*['\"]?([\w.]+)")


def mistyped(args: Sequence[str]) -> str | None:
    """Return what is wrong with the first option that no shipped class has, or None.

    It says nothing where it cannot know: of options of the model and of the data if a class of others is named, and of
    what lies below an option with a value of its own, such as ``trainer.logger``. The parser judges these.

    Args:
        args: command line, the subcommand first.
    """
    known = set(TABLE.read_text().split())
    parents = {name.rpartition(".")[0] for name in known}
    foreign = _foreign(args)
    for token in args[1:]:
        if not token.startswith("--"):
            continue
        name = token[2:].partition("=")[0].replace("init_args.", "").removesuffix(".help").removesuffix("+")
        above = [name[: dot.start()] for dot in re.finditer(r"\.", name)]
        values = any(place in known - parents for place in above)
        own = foreign and name.startswith(("model.", "data."))
        if own or values or {"class_path", "dict_kwargs"} & set(name.split(".")):
            continue
        if name not in known:
            return f"{name} is no option{nearest(name, known)} (all options: swirl {args[0]} {ALL})"
    return None


def _foreign(args: Sequence[str]) -> bool:
    """Tell whether the command line or one of its configurations may name a class that is not shipped."""
    named: list[str] = []
    for token, following in zip(args, [*args[1:], ""], strict=True):
        option, _, value = token.partition("=")
        if option in ("-c", "--config"):
            try:
                named += _CLASS.findall(Path(value or following).read_text(encoding="utf-8"))
            except (OSError, ValueError):
                return True  # the parser says what is wrong with it
        elif option.startswith("--"):
            given = value or following
            named += [given] if given.replace(".", "").isidentifier() else _CLASS.findall(given)
    return not all(path.startswith(_OURS) for path in named if "." in path)
