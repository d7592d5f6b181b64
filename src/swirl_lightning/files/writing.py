"""Files and folders that are written whole or not at all, whenever the process or the machine stops."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4


@contextmanager
def written_to(path: str | Path) -> Iterator[None]:
    """Have an error of the block's writes, as on a full disk, name the file or folder.

    Raises:
        OSError: that error, and safetensors' own in its place.
    """
    try:
        yield
    except OSError as error:
        if error.errno and error.filename is None:  # of a write: those of opening have the name
            error.filename = str(path)
        raise
    except Exception as error:
        if type(error).__name__ == "SafetensorError":  # the library is imported where it is used
            raise OSError(f"{path} cannot be written: {error}") from error
        raise


def append_lines(path: Path, lines: Iterable[str]) -> None:
    """Append lines to a file, after the end of one that was cut short.

    Raises:
        OSError: as :func:`written_to`.
    """
    with written_to(path), open(path, "ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")
        file.write("".join(line + "\n" for line in lines).encode())


@contextmanager
def whole_file(path: str | Path, alone: bool = True) -> Iterator[BinaryIO]:
    """A file that takes the place of ``path`` when the block ends: until then, what stood there stays.

    It is written in the same folder, for a rename within a file system alone is atomic, and is on the disk before.

    Args:
        path: the file.
        alone: nobody else writes it at the same time. False gives each writer an unfinished file of its own; one that
            is killed leaves it behind, where the next writer would otherwise take its place.

    Raises:
        OSError: it cannot be written, as on a full disk; it says which file.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial" if alone else f".{path.name}.{uuid4().hex}.partial")
    try:
        partial.unlink(missing_ok=True)  # which may be a link to anywhere
        with written_to(path), open(partial, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    _sync(path.parent)


@contextmanager
def whole_folder(path: str | Path) -> Iterator[Path]:
    """A new folder that takes the place of ``path`` when the block ends: until then, what stood there stays.

    Folders cannot be exchanged in one step: a process that is killed in between leaves the old one as ``.NAME.old``,
    and the next one puts it back. Who else writes one beside it waits.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with _alone_in(path.parent):
        partial, old = (path.with_name(f".{path.name}.{kind}") for kind in ("partial", "old"))
        if os.path.lexists(old) and not os.path.lexists(path):
            old.rename(path)
        for left in (partial, old):
            _remove(left)
        partial.mkdir()
        try:
            yield partial
        except BaseException:
            _remove(partial)
            raise
        for place, _, names in os.walk(partial):
            for name in names:
                _sync(Path(place, name))
            _sync(Path(place))
        if os.path.lexists(path):
            path.rename(old)
        partial.rename(path)
        _sync(path.parent)
        _remove(old)


def remove_ranks(folder: Path, name: str, ranks: int) -> None:
    """Remove ``<name><rank>.jsonl`` of an earlier command that had more than ``ranks`` processes."""
    for path in folder.glob(f"{name}*.jsonl"):
        rank = path.stem.removeprefix(name)
        if rank.isdecimal() and int(rank) >= ranks:
            path.unlink(missing_ok=True)


def _remove(path: Path) -> None:
    """Remove a folder with what it holds, a file, a pipe, or a link but not what it leads to."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Wait for other processes that write a whole folder in this one; not where the system has no locks of folders.

    The folder itself is locked: a lock's own file would stay beside what a user exports.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network file systems
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _sync(path: Path) -> None:
    """Have the system write a file or a folder's entries to the disk, where it lets itself be asked."""
    if os.name == "nt":  # no handle of a folder there
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
