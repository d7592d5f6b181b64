"""The parser of the ``swirl`` command: Lightning's, with errors in one line and the nearest known name."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from importlib import import_module
from inspect import isfunction, signature
from types import NoneType
from typing import Any, NoReturn, get_args, get_type_hints

from jsonargparse import ArgumentParser
from lightning.pytorch.cli import LightningArgumentParser

from swirl_lightning.console.option_names import Names
from swirl_lightning.console.run import nearest
from swirl_lightning.console.training_help import ALL

_UNKNOWN = re.compile(
    r"(?:unrecognized arguments: (?:--)?(?P<argument>[^\s=]+)|Option '(?P<option>[^']+)' is not accepted"
    r"|(?:Group '(?P<group>[^']+)'|Subcommand '\w+') does not accept option '(?P<member>[^']+)')"
)
_NO_ATTRIBUTE = re.compile(r"module '(?P<module>[^']+)' has no attribute '(?P<name>[^']+)'")
_CLASS = re.compile(r"Problem with given class_path '(.+)':$")
_KEY = re.compile(r'Parser key "([^"]+)":\s*(.*)$')
_SAID_ELSEWHERE = (  # of a union of types: that the others do not fit either, and what was given, which may be long
    "Does not validate against",
    "Subtypes:",
    "Errors:",
    "Expected a <class 'NoneType'>",
    "Expected a path but",
    "Not a valid subclass of",
    "Subclass types expect one of",
    "a class path (str)",
    "a dict with",
    "Given value",
)
_NO_CLASS = "class_path is missing; a configuration without it is laid over another one: -c OTHER -c THIS"


class Parser(LightningArgumentParser):
    """Lightning's parser, with ``null`` for options of classes within classes, short messages and no abbreviations.

    jsonargparse reads the null of ``--model.backbone.quantization null`` and hands it on to the parser of the inner
    class as the text ``None``.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **options})  # --trainer.max_epoch is a mistyped option
        self.add_argument(ALL, action="help", help="Show this help message and exit.")

    def parse_args(self, args: Any = None, *rest: Any, **options: Any) -> Any:
        """Parse as jsonargparse does, with errors of files in one line."""
        if isinstance(args, list) and len(args) == 1 and args[0].endswith("=None"):
            args = [args[0].removesuffix("None") + "null"]
        try:
            return super().parse_args(args, *rest, **options)
        except UnicodeDecodeError as error:
            self.error(f"the configuration is no UTF-8 text: {error}")
        except RecursionError:
            self.error("the configuration is nested too deeply")

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Exit with one line instead of usage and configuration; within a class, leave it to the outer parser."""
        if not self.exit_on_error:
            super().error(message, ex)
        parser = getattr(ex, "subcommand_parser", None) or self
        program = parser.prog.replace(" [options]", "")
        sys.stderr.write(f"error: {shorten(message, parser)} (all options: {program} {ALL})\n")
        self.exit(2)


def shorten(message: str, parser: ArgumentParser | None = None) -> str:
    """Shorten a message of jsonargparse to one line: key, problem and the nearest known name.

    Args:
        message: may go over many lines, with alternatives that nobody meant and the whole configuration.
        parser: has the known names of the outermost options.
    """
    keys: list[str] = []
    place = ""
    problems: list[str] = []
    for line in message.splitlines():
        text = line.strip().removeprefix("- ")
        if "Parser key" in text and (key := _KEY.search(text)):
            keys.append(key[1])
            text = key[2]
        elif found := _CLASS.match(text):
            place, text = found[1], ""
        if text and not text.startswith(_SAID_ELSEWHERE):
            problems.append(text)
    bare = _NO_CLASS if "value: {'init_args':" in message else message.splitlines()[0]
    problem = "; ".join(dict.fromkeys(problems)) or bare
    if unknown := _UNKNOWN.search(problem):
        name = unknown["argument"] or unknown["option"] or ".".join(filter(None, unknown.group("group", "member")))
        known = _options(place) if place else parser.get_defaults().keys() if parser is not None else ()
        above = "".join(f"{key}." for key in keys)
        owner = f" of {place}" if place else ""
        return f"{above}{name} is no option{owner}{nearest(above + name, [above + k for k in _with_parents(known)])}"
    if missing := _NO_ATTRIBUTE.search(problem):
        problem = missing[0] + nearest(missing["name"], dir(import_module(missing["module"])))
    if "is abstract" in problem:
        problem = "options of a class, and no class: name it, too (class_path in YAML)"
    problem = re.sub(r"a (?:typing\.|<class '(?:\w+\.)*)(\w+)(?:'>)?", r"\1", problem)
    if strange := re.search(r"Expected a dot import path string: (\S+)", problem):
        likely = nearest(strange[1], Names().classes.get(".".join(keys), ()))
        problem = f"{strange[1]!r} is no class path (package.Class){likely}"
    return ": ".join(filter(None, [".".join(keys), problem]))


def _options(class_path: str) -> Iterable[str]:
    """Options of a class, those of its dataclasses included, with dots."""
    module, _, name = class_path.rpartition(".")
    return options_of(getattr(import_module(module), name))


def options_of(owner: type) -> list[str]:
    """Return the options of a class, those of its dataclasses included, with dots."""
    parser = LightningArgumentParser(exit_on_error=False)
    parser.add_class_arguments(owner, fail_untyped=False)
    return [str(option) for option in parser.get_defaults().keys()]  # noqa: SIM118 - a Namespace iterates otherwise


def takes_null(class_path: str, name: str) -> bool:
    """Tell whether an option of a class may be null, as far as its type can be told."""
    module, _, owner = class_path.rpartition(".")
    for kind in getattr(getattr(import_module(module), owner), "__mro__", ()):
        init = vars(kind).get("__init__")
        parameter = signature(init).parameters.get(name) if isfunction(init) else None
        if parameter is None:
            continue
        try:
            hint = get_type_hints(init)[name]
        except (NameError, KeyError, TypeError):  # a name for type checkers alone
            return True
        return parameter.default is None or hint in (Any, object) or NoneType in get_args(hint)
    return True


def _with_parents(options: Iterable[str]) -> list[str]:
    """``a.b.c`` is an option, and so are ``a.b`` and ``a``."""
    found: dict[str, None] = {}
    for option in options:
        parts = str(option).split(".")
        found |= dict.fromkeys(".".join(parts[:n]) for n in range(len(parts), 0, -1))
    return list(found)
