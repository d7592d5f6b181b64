"""Behaviour of every command of the package: errors in one line, and no messages that are not for its user."""

from __future__ import annotations

import difflib
import io
import logging
import os
import re
import signal
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence

MENDABLE = (ValueError, OSError, ImportError, FloatingPointError)
"""Errors whose message tells the user what to change. Others are faults of the program, and keep their traceback."""

_RANK_GONE = ("Connection closed by peer", "Connection reset by peer", "Connection was likely closed")
"""What gloo, and the store where ranks meet, say to a rank that waits for one that has ended."""

_LOADER_GONE = "DataLoader worker (pid"
"""What torch says, wherever the program then is, when a process that loads data has ended."""

_IN_LOADER = re.compile(r"Caught (\w+) in DataLoader worker process.*^(?:\w+\.)*\1: (.*)", re.DOTALL | re.MULTILINE)
"""What torch makes of an error in a process that loads data: its traceback, with what it says at the end."""

_UNMADE = ("UnicodeDecodeError", "UnicodeEncodeError", "JSONDecodeError")
"""Mendable errors that torch cannot make anew from a text alone: it makes a RuntimeError in their place."""

_DEPRECATIONS = (  # of libraries among themselves
    r".*is_gradient_checkpointing` is deprecated",
    r".*isinstance\(treespec, LeafSpec\)` is deprecated",
    r"torch\.distributed\.nn\.functional\.\w+ is deprecated",
)
_REDUCED = r"It is recommended to use `self\.log\('(val|test|warmup|bootstrap|fwm|idm)/.*sync_dist=True"
"""Lightning's advice where the value logged is that of all ranks already."""


def run_command(main: Callable[[], None]) -> None:
    """Run a command; what its user can mend ends it with one line on stderr and exit code 1.

    ``SWIRL_TRACEBACK=1`` shows where the error came from.
    """
    _silence_libraries()
    if isinstance(sys.stdout, io.TextIOWrapper):  # tables have letters that the encoding of a file may lack
        sys.stdout.reconfigure(errors="replace")
    try:
        _check_words(sys.argv[1:])
        main()
    except KeyboardInterrupt:
        if os.environ.get("SWIRL_TRACEBACK"):
            raise
        print("interrupted", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    except MENDABLE as error:
        if os.environ.get("SWIRL_TRACEBACK"):
            raise
        told = found[2] if (found := _IN_LOADER.match(str(error))) else str(error)
        message = "\n".join(map(printable, told.strip().split("\n")))  # it may quote a file
        sys.exit(f"error: {message}")
    except RuntimeError as error:
        if os.environ.get("SWIRL_TRACEBACK"):
            raise
        if (found := _IN_LOADER.match(str(error))) and found[1] in _UNMADE:
            sys.exit(f"error: {printable(found[2]).strip()}")
        if _LOADER_GONE in str(error):
            sys.exit(
                f"error: a process that loads data has ended ({printable(error).strip()}), as one does that the system "
                "ends where memory is short: lower num_workers of the data; a fit goes on with --ckpt_path last"
            )
        if not any(words in str(error) for words in _RANK_GONE):
            raise
        sys.exit("error: another rank has ended, and this one with it; look for the message of the other one")


def _check_words(words: Sequence[str]) -> None:
    """Raise ValueError if an argument, such as the name of a file, is no UTF-8: no configuration could hold it."""
    for word in words:
        try:
            word.encode()
        except UnicodeEncodeError:
            raise ValueError(f"{os.fsencode(word)!r} is no UTF-8: rename the file or folder") from None


def printable(text: object) -> str:
    """A text without line breaks and control characters, which could steer a terminal."""
    return "".join(c if c.isprintable() else " " for c in str(text))


def nearest(name: str, known: Iterable[str]) -> str:
    """``; did you mean 'x'?`` with the known name that is most like ``name``, or nothing."""
    found = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {found[0]!r}?" if found else ""


def _silence_libraries() -> None:
    """Drop advertisements, deprecations, advice that is followed already, and the absence of an optional kernel.

    The kernel is bitsandbytes' for inference on CPUs, which training cannot use (see ``engine.quantization``).
    """
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(_no_tip)
    for message in _DEPRECATIONS:
        warnings.filterwarnings("ignore", message, FutureWarning)
        warnings.filterwarnings("ignore", message, DeprecationWarning)
    warnings.filterwarnings("ignore", _REDUCED, UserWarning)


def _no_tip(record: logging.LogRecord) -> bool:
    return "Tip:" not in str(record.msg)
