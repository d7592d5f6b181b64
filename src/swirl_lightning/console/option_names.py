"""Names of the options of LightningCLI's commands, to tell a mistyped one before the libraries are imported."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

from yaml import YAMLError

from swirl_lightning.console.run import nearest
from swirl_lightning.console.training_help import ALL
from swirl_lightning.files.safe_yaml import load

TABLE = Path(__file__).parents[1] / "assets" / "option_names.txt"
"""Options, as `Names` reads them; a test compares them with the parser's, and ``make options`` writes them anew.

- ``data.bert Aurora ScienceWorld``: an option, and the classes that have it if others at its place do not.
- ``data: Aurora MiniGrid``: a place, which is an option whose value is a class, and its classes.
- ``trainer = lightning 2.6``: the version that the options below a name are of.
"""

_PACKAGES = ("", "swirl_lightning", "lightning", "torch")
_UNREAD = "?"  # a class that is not known
_SHORT_CLASS = re.compile(r"[A-Z]\w*[a-z]\w*")
_CONSTANTS = ("None", "True", "False")
_PLAIN = re.compile(r"[a-z][a-z0-9_]*")  # a name that stands for an object, such as ddp, and not for a class
_NAME = re.compile(r"[a-z_][\w.-]*", re.IGNORECASE)
_SHORT = re.compile(r"-(?!c|h$)[a-z][\w-]*", re.IGNORECASE)  # -c may have its value behind it
_LONGEST = 100


def mistyped(args: Sequence[str]) -> str | None:
    """Return what is wrong with the first option that there is not, or None.

    Options are those of the command line, and the keys of its configurations. It says nothing where it cannot know: of
    what stands below an option whose value is a class of others, a file or a dictionary, and of options of a library
    that is installed in another version. The parser judges these, and what looks like no name.

    Args:
        args: command line, the subcommand first.
    """
    names = Names()
    if lacking := _lacking_file(args):
        return lacking
    if stray := _stray(args, names.owners):
        return f"{stray} (all options: swirl {args[0]} {ALL})"
    for given in _given(args):
        if not isinstance(given, dict):  # it may choose any class
            names.chosen |= dict.fromkeys(names.classes, _UNREAD)
            continue
        for written, value in (leaf for key in given for leaf in _leaves(given[key], str(key))):
            parts = written.replace("+", "").split(".")
            name = ".".join(part for part in parts if part not in ("class_path", "init_args"))
            if isinstance(value, str):
                if (told := names.unknown_class(name, value)) and not names.of_another_version(name):
                    return f"{told} (all options: swirl {args[0]} {ALL})"
                names.choose(name, value)
            # the parser knows dict_kwargs, and whether a strange name is a value that begins with two hyphens
            if "dict_kwargs" in parts or len(name) > _LONGEST or not _NAME.fullmatch(name):
                continue
            if (fault := names.fault(name)) and not names.of_another_version(name):
                known = nearest(name, [other for other in names.owners if not names.fault(other)])
                return f"{fault}{known} (all options: swirl {args[0]} {ALL})"
    return None


class Names:
    """Known names of options, and the classes that have been chosen.

    Attributes:
        owners: option -> classes that have it; none if all of its place do.
        classes: place -> its classes.
        versions: name -> package and version that the options below it are of.
        chosen: option -> value, where that is a text: class path, short name of a class, or file.
    """

    def __init__(self) -> None:
        lines = [line.split() for line in TABLE.read_text().splitlines()]
        self.versions = {line[0]: line[2:] for line in lines if line[1:2] == ["="]}
        self.classes = {line[0][:-1]: line[1:] for line in lines if line[0].endswith(":")}
        self.owners = {name: owners for name, *owners in lines if name[-1] != ":" and owners[:1] != ["="]}
        self.chosen: dict[str, str] = {}
        self._parents = {name.rpartition(".")[0] for name in self.owners}

    def fault(self, name: str) -> str | None:
        """Return what is wrong with a name; None if nothing is, or if the parser has to judge."""
        parts, owner = name.split("."), ""
        for above in (".".join(parts[: n + 1]) for n in range(len(parts))):
            having = self.owners.get(above)
            if having is None or (owner and having and owner not in having):
                return f"{name} is no option of {owner}" if owner else f"{name} is no option"
            if above not in self._parents and above not in self.classes:
                return None
            if above in self.classes:
                owner = ""
            if above in self.chosen and not (owner := self._known_class(above)):
                value = self.chosen[above]
                if above == name or not _PLAIN.fullmatch(value) or os.path.exists(value):
                    return None
                return f"{name} is no option: {above} is {value}, a name and no class"
        return None

    def unknown_class(self, name: str, value: str) -> str | None:
        """Return what is wrong with the short name of a class that none has; a path is left to the parser.

        So are the Trainer's: Lightning has classes that need another package.
        """
        known = self.classes.get(name)
        if known is None or value in (*known, *_CONSTANTS) or not _SHORT_CLASS.fullmatch(value):
            return None
        if name.startswith("trainer.") or os.path.exists(value):
            return None
        return f"{name}: {value!r} is no class path (package.Class){nearest(value, known)}"

    def choose(self, name: str, value: str) -> None:
        """Take the value of an option; if it is no known class, it may be a file that chooses classes below it."""
        self.chosen[name] = value
        if not self._known_class(name):
            self.chosen |= {place: _UNREAD for place in self.classes if place.startswith(f"{name}.")}

    def _known_class(self, name: str) -> str:
        package, _, owner = self.chosen[name].rpartition(".")
        known = owner in self.classes.get(name, ()) and package.partition(".")[0] in _PACKAGES
        return owner if known else ""

    def of_another_version(self, name: str) -> bool:
        """Tell whether an option is one of a library that is installed in another version."""
        return any(
            name.startswith(f"{above}.") and minor_version(package) != version
            for above, (package, version) in self.versions.items()
        )


@lru_cache
def minor_version(package: str) -> str:
    """Return the installed version of a package up to the minor one, such as 2.6 of 2.6.1; empty if there is none."""
    from importlib import metadata  # only now: it takes as long as all the rest

    try:
        return ".".join(metadata.version(package).split(".")[:2])
    except metadata.PackageNotFoundError:
        return ""


def _lacking_file(args: Sequence[str]) -> str | None:
    """Return what is wrong with a configuration that is no file, or is given without its option."""
    for before, token in pairwise(args):
        if not token.endswith((".yaml", ".yml")) or any(c.isspace() for c in token):
            continue
        if before in ("-c", "--config") and not os.path.exists(token):
            folder, name = os.path.split(token)
            there = os.listdir(folder or ".") if os.path.isdir(folder or ".") else []
            return f"the configuration {token} does not exist{nearest(name, there)}"
        if not (token.startswith("-") or before.startswith("-")):
            return f"{token} stands without an option: a configuration is given by -c {token}"
    return None


def _stray(args: Sequence[str], known: Iterable[str]) -> str | None:
    """Return what is wrong with the first word that is neither an option nor may be the value of one."""
    for before, token in pairwise(args):
        long = token.removeprefix("-").partition("=")[0]
        if _SHORT.fullmatch(token) or (token.startswith("-c") and long in known):
            return f"{token} is no option{nearest(f'-{token}', [f'--{name}' for name in known])}"
        whole = not before.startswith("-") or "=" in before or (before.startswith("-c") and before != "-c")
        if whole and _NAME.fullmatch(token.partition("=")[0]):
            return f"{token} is no option{nearest(token.partition('=')[0], known)}"
    return None


def _given(args: Sequence[str]) -> Iterator[object]:
    """Yield configurations and options in their order, as mappings; a text for a configuration that cannot be read."""
    for token, following in zip(args[1:], [*args[2:], ""], strict=True):
        option, equals, value = token.partition("=")
        value = value if equals else following
        if option == "--config" or token.startswith("-c"):
            value = value if option in ("-c", "--config") else token[2:]
            try:
                # a pipe can be read once, by the parser
                yield _parsed(Path(value).read_text(encoding="utf-8") if os.path.isfile(value) else value)
            except (OSError, ValueError):
                yield value
        elif option.startswith("--"):
            yield {option[2:].removesuffix(".help"): _parsed(value)}


def _parsed(text: str) -> object:
    try:
        return load(text)
    except YAMLError:
        return text


def _leaves(value: object, name: str) -> Iterator[tuple[str, object]]:
    """Yield a value, and those within mappings and lists, with their names; the class of a mapping comes first."""
    yield name, value
    if isinstance(value, list):
        for item in value:
            yield name, _UNREAD  # without a class, it goes on from the item of a list before
            yield from _leaves(item, name)
    elif isinstance(value, dict):
        for key in sorted(value, key=lambda key: key != "class_path"):
            yield from _leaves(value[key], f"{name}.{key}")
