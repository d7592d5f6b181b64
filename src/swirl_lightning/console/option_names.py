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
_FILES = (".yaml", ".yml", ".json")
_CLASS = re.compile(r"class_path['\"]?\s*:\s*['\"]?([\w.]+)")


def mistyped(args: Sequence[str]) -> str | None:
    """Return what is wrong with the first option that no shipped class has, or None.

    Options are those of the command line, and the keys of its configurations. It says nothing where it cannot know: of
    options of the model and of the data if a class of others is named, and of what lies below an option with a value of
    its own, such as ``trainer.logger``. The parser judges these.

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
        if own or values or {"class_path", "dict_kwargs"} & set(name.split(".")):
            continue
        if name not in known:
            return f"{name} is no option{nearest(name, known)} (all options: swirl {args[0]} {ALL})"
    return None


def _options(args: Sequence[str]) -> tuple[list[str], list[str]]:
    """Find the names of the options, with dots and without ``init_args``, and the class paths."""
    names, classes = [], []
    for token, following in zip(args[1:], [*args[2:], ""], strict=True):
        option, equals, value = token.partition("=")
        given = value if equals else following
        if option == "--config" or token.startswith("-c"):
            path = given if option in ("-c", "--config") else token[2:]
            try:
                text = Path(path).read_text(encoding="utf-8")
                names += _keys(load(text))
                classes += _CLASS.findall(text)
            except (OSError, ValueError, YAMLError):  # it is YAML itself, or the parser says what is wrong with it
                classes.append(_UNKNOWN)
        elif option.startswith("--"):
            names.append(option[2:].removesuffix(".help"))
            is_class = given.replace(".", "").isidentifier()
            classes += [given] if is_class else _CLASS.findall(given) or [_UNKNOWN] * given.endswith(_FILES)
    return [name.removesuffix(".init_args").replace("init_args.", "").replace("+", "") for name in names], classes


def _keys(given: object, above: str = "") -> list[str]:
    """Find the keys of a configuration, those of mappings within mappings with dots."""
    if not isinstance(given, dict):
        return [above[:-1]] if above else []
    return [name for key, value in given.items() for name in _keys(value, f"{above}{key}.")]
