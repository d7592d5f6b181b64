"""Modules run as commands, each in a process of its own."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import random
import runpy
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any
from unittest.mock import patch

TESTS = Path(__file__).parents[1]
FIRST_EPHEMERAL = 32768  # Linux's; other systems begin higher
SECONDS = 400

# forked from a process that has imported what the commands do, which takes seconds; other systems cannot fork safely
CONTEXT = multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")
STARTING = threading.Lock()
CONTEXT.set_forkserver_preload(["support.swirl", "support.suites", "swirl_lightning.cli", "support.preloaded"])


def run_module(name: str, *args: Any, ranks: int = 1, slurm: bool = False) -> subprocess.CompletedProcess[str]:
    """Run ``python -m name args``, which may import ``support``; it is stopped after 400 seconds.

    Args:
        name: the module.
        args: its arguments.
        ranks: processes of one run that the launcher starts, as torchrun does; 1 leaves this to Lightning.
        slurm: they are told so by SLURM's variables.

    Returns:
        What they wrote, rank by rank, and the first exit status that is not 0, of a signal its negative number.

    Raises:
        subprocess.TimeoutExpired: a process had not ended.
    """
    arguments, shared, until = [*map(str, args)], environment(), time.monotonic() + SECONDS
    with tempfile.TemporaryDirectory() as folder:
        running = []
        for rank in range(ranks):
            place = _place(rank, ranks, slurm) if ranks > 1 else {}
            own = (name, arguments, shared | place, os.getcwd(), Path(folder, str(rank)))
            running.append(CONTEXT.Process(target=_run, args=own))
        try:
            start(running, shared)
            for process in running:
                process.join(until - time.monotonic())
                if process.exitcode is None:
                    raise subprocess.TimeoutExpired([name, *arguments], SECONDS)
        finally:
            for process in running:
                process.kill()
        out, err = (
            "".join(Path(folder, f"{rank}.{stream}").read_text() for rank in range(ranks)) for stream in ("out", "err")
        )
        status = next((process.exitcode for process in running if process.exitcode), 0)
    return subprocess.CompletedProcess([name, *arguments], status, out, err)


def start(processes: Sequence[BaseProcess], environment: Mapping[str, str]) -> None:
    """Start processes of ``CONTEXT``."""
    if sys.platform == "linux":
        with STARTING, patch.dict(os.environ, environment):
            forkserver.ensure_running()
    for process in processes:
        process.start()


def swirl(*args: Any, ranks: int = 1) -> subprocess.CompletedProcess[str]:
    """``swirl args``."""
    return run_module("swirl_lightning", *args, ranks=ranks)


def _run(name: str, arguments: Sequence[str], environment: Mapping[str, str], folder: str, streams: Path) -> None:
    """What a new process does first: give its streams a place."""
    for number, stream in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{streams}.{stream}", os.O_WRONLY | os.O_CREAT), number)
    become(name, arguments, environment, folder)


def become(name: str, arguments: Sequence[str], environment: Mapping[str, str], folder: str) -> None:
    """Turn a forked process into ``python -m name arguments``."""
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    multiprocessing.set_start_method(None, force=True)  # Python's own, and not that by which this process was started
    sys.argv = [name, *arguments]
    if not hasattr(sys.modules.get(name), "__path__"):
        sys.modules.pop(name, None)  # runpy warns of a module that has been imported before
    try:
        runpy.run_module(name, run_name="__main__", alter_sys=True)
    finally:
        atexit._run_exitfuncs()  # which multiprocessing leaves out


def _place(rank: int, ranks: int, slurm: bool) -> dict[str, str]:
    """Return the variables by which a launcher tells a process its rank."""
    if not slurm:
        return {"WORLD_SIZE": str(ranks), "LOCAL_RANK": str(rank), "NODE_RANK": "0"}
    given = {"JOB_ID": 17, "JOB_NAME": "swirl", "NTASKS": ranks, "NTASKS_PER_NODE": ranks}
    given |= {"PROCID": rank, "LOCALID": rank, "NODEID": 0}
    return {f"SLURM_{name}": str(value) for name, value in given.items()}


def environment() -> dict[str, str]:
    """Return the environment: one thread, the tests' helpers on the path, and a port on which ranks can meet."""
    path = os.pathsep.join(filter(None, [str(TESTS), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "MASTER_PORT": str(free_port())}


def free_port() -> int:
    """Find a port below those that the system gives to clients: Lightning's own choice can be taken before its use."""
    while True:
        port = random.SystemRandom().randrange(20000, FIRST_EPHEMERAL)
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)):  # nobody listens
                return port
