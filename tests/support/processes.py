"""The environment of Python processes that tests start."""

from __future__ import annotations

import os
import random
import socket
from pathlib import Path

TESTS = Path(__file__).parents[1]
FIRST_EPHEMERAL = 32768  # Linux's; other systems begin higher


def environment() -> dict[str, str]:
    """One thread, the tests' helpers on the path, and a port on which ranks can meet."""
    path = os.pathsep.join(filter(None, [str(TESTS), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "MASTER_PORT": str(_free_port())}


def _free_port() -> int:
    """Below the ports that the system gives to clients: Lightning's own choice can be taken before it is used."""
    while True:
        port = random.SystemRandom().randrange(20000, FIRST_EPHEMERAL)
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)):  # nobody listens
                return port
