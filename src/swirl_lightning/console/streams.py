"""Standard streams of a training that outlives the reader of its output."""

from __future__ import annotations

import errno
import io
import os
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from select import select
from typing import Any

STANDARD = (1, 2)
"""Descriptors of stdout and stderr."""


def to_nowhere(*streams: int) -> None:
    """Drop what is written from now on to these descriptors, if they are no files."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for number in streams:
        if not stat.S_ISREG(os.fstat(number).st_mode):
            os.dup2(nowhere, number)
    os.close(nowhere)


def say_at_once(text: str) -> None:
    """Write a line to stderr from a handler of signals, which may interrupt a print; drop it if nobody reads."""
    with suppress(OSError):
        if select([], [STANDARD[1]], [], 0)[1]:
            os.write(STANDARD[1], f"{text}\n".encode())


@contextmanager
def outliving_readers(gone: Callable[[], None]) -> Iterator[None]:
    """Drop, in the block, what is written when a reader has ended: the next line of progress would be an error.

    Args:
        gone: called when that was the reader of a pipe. Terminals say it by a signal.
    """
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (_outliving(stream, gone) for stream in before)
    try:
        yield
    finally:
        for stream, own in zip((sys.stdout, sys.stderr), before, strict=True):
            if stream is not own:
                stream.flush()
        sys.stdout, sys.stderr = before


def _outliving(stream: Any, gone: Callable[[], None]) -> Any:
    """Return a stream that writes to the same place; one that is a file, or the program's own, as it is."""
    buffer = getattr(stream, "buffer", None)
    raw = getattr(buffer, "raw", buffer)  # python -u has no buffer between
    if not isinstance(raw, io.FileIO) or stat.S_ISREG(os.fstat(raw.fileno()).st_mode):
        return stream
    stream.flush()
    writer, unbuffered = io.BufferedWriter(_Outliving(raw.fileno(), gone)), raw is buffer
    return io.TextIOWrapper(writer, stream.encoding, stream.errors, None, stream.line_buffering or unbuffered)


class _Outliving(io.FileIO):
    def __init__(self, number: int, gone: Callable[[], None]) -> None:
        super().__init__(number, "w", closefd=False)
        self._gone = gone

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.EIO):
                raise
            to_nowhere(self.fileno())  # the other one may be read
            if error.errno == errno.EPIPE:
                self._gone()
            return len(data)
