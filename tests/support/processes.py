"""Modules run as commands, in processes of their own."""

from __future__ import annotations

import os
import random
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parents[1]
FIRST_EPHEMERAL = 32768  # Linux's; other systems begin higher


def run_module(name: str, *args: Any) -> subprocess.CompletedProcess[str]:
    """Run ``python -m name args``, which may import ``support``; it is stopped after 400 seconds."""
    return subprocess.run(
        [sys.executable, "-m", name, *map(str, args)],
        capture_output=True,
        text=True,
        env=_environment(),
        timeout=400,
    )


def swirl(*args: Any) -> subprocess.CompletedProcess[str]:
    """``swirl args``."""
    return run_module("swirl_lightning", *args)


def _environment() -> dict[str, str]:
    """Return the environment: one thread, the tests' helpers on the path, and a port on which ranks can meet."""
    path = os.pathsep.join(filter(None, [str(TESTS), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "MASTER_PORT": str(_free_port())}


def _free_port() -> int:
    """Find a port below those that the system gives to clients: Lightning's own choice can be taken before its use."""
    while True:
        port = random.SystemRandom().randrange(20000, FIRST_EPHEMERAL)
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)):  # nobody listens
                return port
