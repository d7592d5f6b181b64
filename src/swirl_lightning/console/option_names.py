"""Names of the options of LightningCLI's commands, to tell a mistyped one before the libraries are imported."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from yaml import YAMLError

from swirl_lightning.console.run import nearest
from swirl_lightning.console.training_help import ALL
from swirl_lightning.yaml_files import load

TABLE = Path(__file__).parents[1] / "assets" / "option_names.txt"
"""The names, one a line; a test compares them with the parser's, and ``make options`` writes them anew."""

_OURS = "swirl_lightning."
_UNKNOWN = "unknown.Class"
_CHOICES = (
    "model",
    "data",
    "model.backbone",
    "model.reward",
    "model.learner",
    "model.rollout_engine",
    "model.optimizer",
)
"""Options whose value may be a class path, or a file that names one."""
_NAME = re.compile(r"[a-z_]\w*(\.\w+)*", re.IGNORECASE)
_LONGEST = 100


def mistyped(args: Sequence[str]) -> str | None:
    """Return what is wrong with the first option that no shipped class has, or None.

    Options are those of the command line, and the keys of its configurations. It says nothing where it cannot know: of
    options of the model and of the data if a class of others is named, and of what lies below an option with a value of
    its own, such as ``trainer.logger``. The parser judges these, and what looks like no name.

    Args:
        args: command line, the subcommand first.
    """
    known = set(TABLE.read_text().split())
    leaves = known - {name.rpartition(".")[0] for name in known}
    written, classes = _options(args)
    foreign = any("." in path and not path.startswith(_OURS) for path in classes)
    for name in written:
        values = any(name[: dot.start()] in leaves for dot in re.finditer(r"\.", name))
        own = foreign and name.startswith(("model.", "data."))
        strange = len(name) > _LONGEST or not _NAME.fullmatch(name)  # perhaps a value that begins with two hyphens
        if own or values or strange or {"class_path", "dict_kwargs"} & set(name.split(".")):
            continue
        if name not in known:
            return f"{name} is no option{nearest(name, known)} (all options: swirl {args[0]} {ALL})"
    return None


def _options(args: Sequence[str]) -> tuple[list[str], list[str]]:
    """Find the names of the options, with dots and without ``init_args``, and what may be a class path or a file."""
    names, classes = [], []
    for token, following in zip(args[1:], [*args[2:], ""], strict=True):
        option, equals, value = token.partition("=")
        given = value if equals else following
        if option == "--config" or token.startswith("-c"):
            path = Path(given if option in ("-c", "--config") else token[2:])
            try:
                # a pipe can be read once, by the parser
                found = _leaves(load(path.read_text(encoding="utf-8"))) if path.is_file() else {"model": _UNKNOWN}
            except (OSError, ValueError, YAMLError):  # the parser says what is wrong with it
                found = {"model": _UNKNOWN}
        elif option.startswith("--"):
            found = {option[2:]: given}
        else:
            continue
        for written, leaf in found.items():
            name = written.replace("init_args.", "").removesuffix(".help").replace("+", "")
            names.append(name.removesuffix(".init_args"))
            if isinstance(leaf, str) and (name.endswith("class_path") or name in _CHOICES):
                classes.append(leaf)
            elif isinstance(leaf, str) and "class_path" in leaf:  # a class as JSON
                classes.append(_UNKNOWN)
    return names, classes


def _leaves(given: object, above: str = "") -> dict[str, object]:
    """Return the values of a configuration by their keys, those of mappings within mappings with dots."""
    if not isinstance(given, dict):
        return {above[:-1]: given} if above else {}
    return {name: leaf for key, value in given.items() for name, leaf in _leaves(value, f"{above}{key}.").items()}
