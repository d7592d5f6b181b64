"""YAML whose aliases do not multiply, and whose keys come once.

A few lines of aliases can stand for more than any memory holds, and of a key that comes twice the first value is lost.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import yaml

MOST = 100_000
"""Values of a file with every alias written out."""


_MERGE = "tag:yaml.org,2002:merge"


class KeyTwice(yaml.YAMLError):
    """A mapping has a key twice."""


class TooManyAliases(yaml.YAMLError):
    """Aliases stand for more than `MOST` values, or for themselves."""


def load(text: str) -> Any:
    """Parse YAML with plain values.

    Raises:
        YAMLError: it is none; `TooManyAliases` and `KeyTwice` among others.
    """
    return guarded(yaml.safe_load)(text)


def guarded(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    """Return the parser behind a check of aliases and keys; what is nested too deeply is a YAMLError, too."""

    def checked(text: str) -> Any:
        try:
            if isinstance(text, str) and ("*" in text or text.count(":") > 1):
                _check(text)
            return parse(text)
        except RecursionError:
            raise yaml.YAMLError("it is nested too deeply") from None
        # of a tag, such as !!int with no number, of "\UFFFFFFFF", or of a number in base 60 of many digits
        except (ValueError, LookupError, AttributeError, TypeError, OverflowError) as error:
            raise yaml.YAMLError(f"a value is not of its tag ({type(error).__name__}: {error})") from error

    return checked


def _check_keys(node: yaml.MappingNode) -> None:
    found: dict[tuple[str, str], int] = {}
    for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.tag != _MERGE):
        line = key.start_mark.line + 1
        if first := found.get((key.tag, key.value)):
            raise KeyTwice(f"the key {key.value[:60]!r} comes twice, in lines {first} and {line}: leave one out")
        found[key.tag, key.value] = line


def _check(text: str) -> None:
    sizes: dict[int, int] = {}

    def size(node: Any) -> int:
        if id(node) not in sizes:
            sizes[id(node)] = MOST  # for an alias of the node within itself
            parts = node.value if isinstance(node, yaml.SequenceNode) else []
            if isinstance(node, yaml.MappingNode):
                _check_keys(node)
                parts = [part for pair in node.value for part in pair]
            sizes[id(node)] = 1 + sum(map(size, parts))
        return sizes[id(node)]

    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError:
        return  # the parser says what is wrong
    if root is not None and size(root) > MOST:
        raise TooManyAliases(f"its aliases stand for more than {MOST} values: write them out, or leave them out")
