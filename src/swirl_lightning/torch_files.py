"""Files that ``torch.save`` has written, checked before they are read.

With ``weights_only=True`` no code of theirs runs. A small file can still keep its reader for ever: its parts may be one
part, compressed, many times; and a list that holds a list twice, which holds a list twice, is short as a pickle and
takes for ever to copy, compare, print or hash.
"""

from __future__ import annotations

import math
import pickletools
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
        ValueError: as :func:`check`.
        pickle.UnpicklingError: it holds other things.
    """
    check(path)
    return torch.load(path, map_location=map_location, weights_only=True)


def check(path: str | Path) -> None:
    """Check that reading a file ends.

    Raises:
        ValueError: its parts are compressed or lie within each other, as in no file of torch's, or its pickle stands
            for very much more than it holds.
    """
    with open(path, "rb") as file:
        if not zipfile.is_zipfile(file):
            file.seek(0)
            for _ in range(_STREAMS):
                _check_pickle(file)
            return
    with zipfile.ZipFile(path) as archive:
        for part in _parts_in(archive):
            if part.filename.endswith(".pkl"):
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


def _check_pickle(file: IO[bytes]) -> None:
    """Raise ValueError if a pickle's values, counted as often as they are referred to, are far more than it has."""
    try:
        parts, count = _parts_of(file)
    except (IndexError, KeyError) as error:
        raise ValueError(f"its pickle is broken ({type(error).__name__})") from None
    if _size(parts) > _MOST_COPIES * (count + 10_000):
        raise ValueError("the lists and objects in it hold each other so often that reading them would not end")


_Node = list[Any]
"""What a value of a pickle is made of: a list of such lists."""
_MARK: _Node = []
_LEAF: tuple[()] = ()
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


def _parts_of(file: IO[bytes]) -> tuple[Any, int]:
    """Follow a pickle's operations without making its value: what that is made of, and the number of operations."""
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    count = 0

    def taken(number: int | None) -> _Node:
        if number is _SINCE_MARK:
            number = next((n for n, node in enumerate(reversed(stack)) if node is _MARK), len(stack))
            stack.pop(-1 - number)
        if number > len(stack):
            raise IndexError
        nodes = stack[len(stack) - number :]
        del stack[len(stack) - number :]
        return nodes

    for operation, given, _ in pickletools.genops(file):
        name, argument, count = operation.name, cast(int, given), count + 1
        if name in ("PUT", "BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name == "MARK":
            stack.append(_MARK)
        elif name in _JOINED:
            stack.append(taken(_JOINED[name]))
        elif name in _ADDED:
            added = taken(_ADDED[name])
            if stack[-1] is _LEAF:
                raise IndexError
            stack[-1].extend(added)
        elif name in ("EMPTY_DICT", "EMPTY_LIST", "EMPTY_SET", "EMPTY_TUPLE"):
            stack.append([])
        elif name in ("POP", "POP_MARK"):
            taken(_SINCE_MARK if name == "POP_MARK" else 1)
        elif name == "DUP":
            stack.append(stack[-1])
        elif name not in ("PROTO", "FRAME", "STOP"):
            stack.append(_LEAF)
    return stack[-1], count


def _size(root: Any) -> float:
    """Count the values that a value is made of, each as often as it is referred to; infinite if one holds itself."""
    sizes: dict[int, float] = {id(_LEAF): 1.0}
    open_: set[int] = set()
    todo = [root]
    while todo:
        node = todo[-1]
        if id(node) in sizes:
            todo.pop()
        elif id(node) in open_:  # what it is made of has been counted
            sizes[id(node)] = 1.0 + sum(sizes[id(part)] for part in node)
            open_.discard(id(node))
            todo.pop()
        else:
            open_.add(id(node))
            missing = [part for part in node if id(part) not in sizes]
            if any(id(part) in open_ for part in missing):
                return math.inf
            todo += missing
    return sizes[id(root)]
