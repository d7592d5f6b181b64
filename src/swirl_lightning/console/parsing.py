"""The parser of the ``swirl`` command: Lightning's, with errors in one line and the nearest known name."""

from __future__ import annotations

import os
import re
import sys
from argparse import Action
from collections.abc import Collection, Iterable
from importlib import import_module
from inspect import isfunction, signature
from types import NoneType
from typing import Any, NoReturn, get_args, get_type_hints

from jsonargparse import ArgumentParser
from lightning.pytorch.cli import LightningArgumentParser

from swirl_lightning.console.run import nearest
from swirl_lightning.console.training_help import ALL

_UNKNOWN = re.compile(
    r"(?:unrecognized arguments: (?:--)?(?P<argument>[^\s=]+)|Option '(?P<option>[^']+)' is not accepted"
    r"|(?:Group '(?P<group>[^']+)'|Subcommand '\w+') does not accept option '(?P<member>[^']+)')"
)
_NO_ATTRIBUTE = re.compile(r"module '(?P<module>[^']+)' has no attribute '(?P<name>[^']+)'")
_CLASS = re.compile(r"Problem with given class_path '(.+)':$")
_KEY = re.compile(r'Parser key "([^"]+)":\s*(.*)$')
_CALLABLE = re.compile(
    r"Type .* expects a function or a callable class: (.*?)\. Got value: (?:Namespace\(class_path='([^']+)')?"
)
_NESTED = re.compile(r"NestedArg\(key='(?:[^']+\.)?([^'.]+)'")
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
    message = re.sub(r"^--(\S+)\.help: ", r'Parser key "\1": ', message)
    keys: list[str] = []
    places: dict[int, str] = {}  # indentation -> first class there: the next one is another of a union
    problems: list[str] = []
    for line in message.splitlines():
        text = line.strip().removeprefix("- ")
        depth = len(line) - len(line.lstrip())
        if "Parser key" in text and (key := _KEY.search(text)):
            keys.append(key[1])
            text = key[2]
        elif found := _CLASS.match(text):
            places.setdefault(depth, found[1])
            text = ""
        elif made := _CALLABLE.match(text):
            text = made[1]
            if made[2]:
                places[depth] = made[2]
        if text and not text.startswith(_SAID_ELSEWHERE):
            problems.append(text)
    place = places[max(places)] if places else ""
    bare = _NO_CLASS if "value: {'init_args':" in message else message.splitlines()[0]
    problem = "; ".join(dict.fromkeys(problems)) or bare
    if unknown := _UNKNOWN.search(problem):
        name = unknown["argument"] or unknown["option"] or ".".join(filter(None, unknown.group("group", "member")))
        if name.endswith((".yaml", ".yml")):
            return f"{name} stands without an option: a configuration is given by -c {name}"
        above = "".join(f"{key}." for key in keys)
        owner = f" of {place.rpartition('.')[2]}" if place else ""
        known = [above + option for option in _names(_actions(place, parser)) if not place or option != name]
        return f"{above}{name} is no option{owner}{nearest(above + name, known)}"
    if missing := _NO_ATTRIBUTE.search(problem):
        problem = missing[0] + nearest(missing["name"], dir(import_module(missing["module"])))
    if lacking := re.search(r"File does not exist: '(.+)'", problem):
        problem += _nearest_file(lacking[1], _actions("", parser))
    if "is abstract" in problem:
        problem = "options of a class, and no class: name it, too (class_path in YAML)"
    problem = re.sub(r"a (?:typing\.|<class '(?:\w+\.)*)(\w+)(?:'>)?", r"\1", problem)
    if strange := re.search(r"Expected a dot import path string: ([^\s;]+)", problem):
        problem = f"{strange[1]!r} is no class path (package.Class)"
        if keys:
            problem += nearest(strange[1], _classes(_actions(place, parser).get(f"--{keys[-1]}")))
            given = _NESTED.findall(message)[-1:]  # the whole option: what stands before it is a part of it
            if given and given[0] not in (keys[-1].rpartition(".")[2], "class_path", "help"):
                problem += f", and has no option {given[0]}"
    return ": ".join(filter(None, [".".join(keys), problem]))


def _actions(place: str, parser: ArgumentParser | None) -> dict[str, Action]:
    """Return the options of a class, or of a function that makes one, with two hyphens.

    Args:
        place: path of the class; if it is empty, the options are the parser's.
        parser: has no options if it is None.
    """
    if place:
        owner, parser = _imported(place), LightningArgumentParser(exit_on_error=False)
        add = parser.add_class_arguments if isinstance(owner, type) else parser.add_function_arguments
        add(owner, fail_untyped=False)
    return {} if parser is None else parser._option_string_actions


def _names(options: Iterable[str]) -> list[str]:
    """Return the names of options without hyphens; ``a.b.c`` is one, and so are ``a.b`` and ``a``."""
    names = [option[2:].rstrip("+").split(".") for option in options if option.startswith("--")]
    names = [parts for parts in names if parts[-1] != "help"]
    return [".".join(parts[:n]) for parts in names for n in range(len(parts), 0, -1)]


def _classes(action: Action | None) -> list[str]:
    """Return the names of the classes that an option may have as its value."""
    paths = getattr(action, "extra_help", str)().split(", ")  # an option of another type has no such list
    return [path.rpartition(".")[2] for path in paths]


def _nearest_file(path: str, options: Collection[str]) -> str:
    """Suggest a file of the same folder, or an option with one hyphen: ``-ckpt_path`` is read as ``-c kpt_path``."""
    folder, name = os.path.split(path)
    if (option := f"--c{name.partition('=')[0]}") in options:
        return f"; did you mean {option!r}?"
    return nearest(name, os.listdir(folder)) if os.path.isdir(folder) else ""


def takes_null(class_path: str, name: str) -> bool:
    """Tell whether an option of a class may be null, as far as its type can be told."""
    for kind in getattr(_imported(class_path), "__mro__", ()):
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


def _imported(path: str) -> Any:
    module, _, name = path.rpartition(".")
    return getattr(import_module(module), name)
