"""Runs whose terminal, or the reader of whose output, goes away. Run by tests/callbacks/test_save_on_termination.py."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

from support.processes import CONTEXT, become, environment, start


def on_terminal(terminal: int) -> None:
    """All streams are the terminal, as a login leaves them."""
    os.login_tty(terminal)


def piped(terminal: int) -> None:
    """What the run says goes through a pipe, to ``| tee``."""
    os.dup2(1, 3)
    os.login_tty(terminal)
    os.dup2(3, 1)
    os.dup2(3, 2)


def ignored(terminal: int) -> None:
    """As ``nohup`` does."""
    os.login_tty(terminal)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


STARTS: dict[str, Callable[[int], None]] = {"terminal": on_terminal, "pipe": piped, "ignored": ignored}


def begin(args: Sequence[object], out: Connection, terminal: Connection | None = None, how: str = "") -> BaseProcess:
    """Start ``swirl args``, which writes to ``out``; with a terminal, as one of ``STARTS`` says."""
    arguments, given = [*map(str, args)], environment()
    process = CONTEXT.Process(target=_run, args=(arguments, given, os.getcwd(), out, terminal, how))
    start([process], given)
    return process


def begin_logged(args: Sequence[object], out: Connection, log: Path) -> BaseProcess:
    """Start one whose messages go to a file."""
    arguments, given = [*map(str, args)], environment()
    process = CONTEXT.Process(target=_run, args=(arguments, given, os.getcwd(), out, None, str(log)))
    start([process], given)
    return process


def _run(
    arguments: list[str], given: dict[str, str], folder: str, out: Connection, terminal: Connection | None, how: str
) -> None:
    """What the process does."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # whatever the tests are started with
    os.dup2(out.fileno(), 1)
    out.close()
    if terminal is None:
        os.dup2(os.open(how, os.O_WRONLY | os.O_CREAT), 2)
    else:
        STARTS[how](terminal.fileno())
    # as a new interpreter has them
    sys.stdout, sys.stderr = (open(number, "w", buffering=1, closefd=False) for number in (1, 2))  # noqa: SIM115
    become("swirl_lightning", arguments, given, folder)
