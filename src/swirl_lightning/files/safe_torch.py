"""Files that ``torch.save`` has written, checked before they are read.

With ``weights_only=True`` no code of theirs runs. A small file can still keep its reader for ever: its parts may be one
part, compressed, many times; a list that holds a list twice, which holds a list twice, is short as a pickle and takes
for ever to copy, compare, print or hash; so do keys of one hash; and some calls double what they are given.
"""

from __future__ import annotations

import math
import os
import pickletools
import struct
import zipfile
from pathlib import Path
from typing import IO, Any, cast

import torch

_MOST_COPIES = 100
"""Values that a pickle may stand for, per value in it."""
_STREAMS = 5  # pickles at the beginning of a file as torch wrote it before 1.6


def load_torch(path: str | Path, map_location: Any = None) -> Any:
    """Read a file's tensors and values.

    Raises:
        ValueError: as :func:`check`; it names the file.
        pickle.UnpicklingError: it holds other things.
    """
    try:
        check(path)
    except ValueError as error:
        raise ValueError(f"{path} is no file that torch has written: {error}") from None
    return torch.load(path, map_location=map_location, weights_only=True)


def check(path: str | Path) -> None:
    """Check that reading a file ends.

    Raises:
        ValueError: its parts are compressed or lie within each other, or its directory is not at its end, as in no file
            of torch's; or its pickle stands for very much more than it holds, or has keys other than words and numbers.
    """
    with open(path, "rb") as file:
        zipped = file.read(4) == _BEGINNING  # as torch tells the two formats apart
        file.seek(0)
        if not zipped:
            for _ in range(_STREAMS):
                _check_pickle(file)
            return
        _check_directory(file)
    with zipfile.ZipFile(path) as archive:
        for part in _parts_in(archive):
            if part.filename.lower().endswith(".pkl"):  # torch finds a part whatever its case
                with archive.open(part) as content:
                    _check_pickle(content)


def damaged(path: str | Path) -> str | None:
    """Name the first part of a file whose bits are not those written: torch does not compare checksums.

    Raises:
        ValueError: its parts are compressed or lie within each other.
        zipfile.BadZipFile: it is cut, or no archive.
    """
    with zipfile.ZipFile(path) as archive:
        _parts_in(archive)
        return archive.testzip()


def _parts_in(archive: zipfile.ZipFile) -> list[zipfile.ZipInfo]:
    parts = archive.infolist()
    if any(part.compress_type != zipfile.ZIP_STORED for part in parts):
        raise ValueError("its parts are compressed, and torch compresses none")
    if sum(part.file_size for part in parts) > Path(str(archive.filename)).stat().st_size:
        raise ValueError("its parts are larger than the file")
    return parts


def _check_directory(file: IO[bytes]) -> None:
    """Raise ValueError unless the one directory of an archive ends where its closing records begin.

    Python and torch would otherwise not find the same parts.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - _CLOSING))
    tail = file.read()
    end, wide = tail[-_END.size :], tail[-_END.size - _LOCATOR.size : -_END.size]
    try:
        signature, length, start, comment = _END.unpack(end)
        place = size - _END.size
        if wide[:4] == b"PK\x06\x07":  # sizes of 64 bits
            place = size - _CLOSING
            (located,) = _LOCATOR.unpack(wide)
            length, start = _WIDE.unpack(tail[: _WIDE.size])
            if located != place or tail[:4] != b"PK\x06\x06":
                raise ValueError
        if signature != b"PK\x05\x06" or comment or start + length != place:
            raise ValueError
    except (struct.error, ValueError):
        raise ValueError("its directory is not at its end, or there is another one") from None


_BEGINNING = b"PK\x03\x04"
_END = struct.Struct("<4s8xIIH")
_LOCATOR = struct.Struct("<8xQ4x")
_WIDE = struct.Struct("<40xQQ")
_CLOSING = _WIDE.size + _LOCATOR.size + _END.size


def _check_pickle(file: IO[bytes]) -> None:
    """Raise ValueError if a pickle's values, counted as often as they are referred to, are far more than it has."""
    try:
        nodes, count = _parts_of(file)
    except (IndexError, KeyError) as error:
        raise ValueError(f"its pickle is broken ({type(error).__name__})") from None
    if _largest(nodes) > _MOST_COPIES * (count + 10_000):
        raise ValueError("the lists and objects in it hold each other so often that reading them would not end")


class _Leaf:
    """A value that holds no other: ``key`` if it may be one of a dictionary or in a set, ``name`` of a class."""

    def __init__(self, key: bool = False, name: str = "") -> None:
        self.key, self.name = key, name


_Node = list[Any]
"""What a value of a pickle is made of: a list of such lists, and of leaves."""
_MARK, _OTHER, _KEY, _LATIN = _Leaf(), _Leaf(), _Leaf(key=True), _Leaf(key=True)
_LARGEST_KEY = 2**61 - 2  # beyond it different numbers have equal hashes, and a dictionary of them takes for ever
_SINCE_MARK = None
_JOINED: dict[str, int | None] = {
    **{"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3, "BINPERSID": 1},
    **{"REDUCE": 2, "NEWOBJ": 2, "NEWOBJ_EX": 3, "STACK_GLOBAL": 2},
    **dict.fromkeys(("TUPLE", "LIST", "DICT", "FROZENSET", "OBJ", "INST"), _SINCE_MARK),
}
"""Operations that make one value of so many."""
_ADDED: dict[str, int | None] = {
    **{"SETITEM": 2, "APPEND": 1, "BUILD": 1},
    **dict.fromkeys(("SETITEMS", "APPENDS", "ADDITEMS"), _SINCE_MARK),
}
"""Operations that add so many values to the one before them."""
_HASHED = {"SETITEM": 2, "SETITEMS": 2, "DICT": 2, "ADDITEMS": 1, "FROZENSET": 1}
"""Operations of which each value, or the first of each two, is hashed."""
_CALLING = ("REDUCE", "NEWOBJ", "NEWOBJ_EX", "OBJ", "INST")
_CALLED = {"torch Size", "torch device", "torch.serialization _get_layout", "torch._tensor _rebuild_from_type_v2"}
"""What a file may call beside functions that rebuild tensors, ``OrderedDict()``, ``set`` and ``bytes`` of a text."""


def _parts_of(file: IO[bytes]) -> tuple[list[_Node], int]:
    """Follow a pickle's operations without making its values: what they are made of, and the number of operations."""
    stack: list[Any] = []
    nodes: list[_Node] = []
    memo: dict[int, Any] = {}
    count = 0

    def taken(number: int | None) -> _Node:
        if number is _SINCE_MARK:
            number = next((n for n, node in enumerate(reversed(stack)) if node is _MARK), len(stack))
            stack.pop(-1 - number)
        if number > len(stack):
            raise IndexError
        found = stack[len(stack) - number :]
        del stack[len(stack) - number :]
        return found

    def push(node: _Node) -> None:
        nodes.append(node)
        stack.append(node)

    for operation, given, _ in pickletools.genops(file):
        name, argument, count = operation.name, cast(Any, given), count + 1
        if name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            memo[_number(len(memo) if name == "MEMOIZE" else argument)] = stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo[_number(argument)])
        elif name == "MARK":
            stack.append(_MARK)
        elif name in _JOINED:
            joined = taken(_JOINED[name])
            _check_keys(joined[:: _HASHED[name]] if name in _HASHED else [])
            if name in _CALLING:
                _check_call(joined)
            push(joined)
        elif name in _ADDED:
            added = taken(_ADDED[name])
            _check_keys(added[:: _HASHED[name]] if name in _HASHED else [])
            if isinstance(stack[-1], _Leaf):
                raise IndexError
            stack[-1].extend(added)
        elif name in ("EMPTY_DICT", "EMPTY_LIST", "EMPTY_SET", "EMPTY_TUPLE"):
            push([])
        elif name in ("POP", "POP_MARK"):
            taken(_SINCE_MARK if name == "POP_MARK" else 1)
        elif name == "DUP":
            stack.append(stack[-1])
        elif name == "GLOBAL":
            stack.append(_Leaf(name=str(argument)))
        elif name not in ("PROTO", "FRAME", "STOP"):
            small = isinstance(argument, int) and abs(argument) <= _LARGEST_KEY
            leaf = _KEY if small or isinstance(argument, str) else _OTHER
            stack.append(_LATIN if argument == "latin1" else leaf)
    return nodes, count


def _number(place: int) -> int:
    """Return the number of a value to come back to; those of torch's own files take four bytes at most."""
    if not 0 <= place < 2**32:
        raise IndexError
    return place


def _check_keys(values: _Node) -> None:
    """Raise ValueError if what is hashed is other than words and numbers: crafted values have equal hashes."""
    if not all(isinstance(value, _Leaf) and value.key for value in values):
        raise ValueError("a dictionary or set in it has other keys than words and numbers below 2^61")


def _check_call(values: _Node) -> None:
    """Raise ValueError if a function and its arguments are none that torch writes: some make much of little."""
    made, given = (values[0], values[1:]) if values else (_OTHER, [])
    name = made.name if isinstance(made, _Leaf) else "what it has made itself"
    if name.startswith("torch._utils _rebuild") or name in _CALLED:
        return
    (arguments,) = given if len(given) == 1 and isinstance(given[0], list) else [None]
    if name == "collections OrderedDict" and arguments == []:
        return
    if name in ("__builtin__ set", "builtins set") and arguments and isinstance(arguments[0], list):
        return _check_keys(arguments[0])
    if name == "_codecs encode" and arguments in ([_KEY, _LATIN], [_LATIN, _LATIN]):
        return
    raise ValueError(f"it calls {name.replace(' ', '.')[:100]!r}, which no file of tensors does so")


def _largest(nodes: list[_Node]) -> float:
    """Count the values that each of some is made of, each as often as it is referred to, and return the most.

    Infinite if one holds itself.
    """
    sizes: dict[int, float] = {}
    open_: set[int] = set()
    for root in nodes:
        todo = [root]
        while todo:
            node = todo[-1]
            if id(node) in sizes:
                todo.pop()
            elif id(node) in open_:  # what it is made of has been counted
                sizes[id(node)] = 1.0 + sum(1.0 if isinstance(part, _Leaf) else sizes[id(part)] for part in node)
                open_.discard(id(node))
                todo.pop()
            else:
                open_.add(id(node))
                missing = [part for part in node if not isinstance(part, _Leaf) and id(part) not in sizes]
                if any(id(part) in open_ for part in missing):
                    return math.inf
                todo += missing
    return max(sizes.values(), default=1.0)
