"""One start of ``swirl fit``, forked from this process, which has imported everything: see `perf.soak`. POSIX alone."""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
import time
import traceback
from collections import Counter
from pathlib import Path

from perf.parts import PIPE
from swirl_lightning.__main__ import main as swirl


class Attempt:
    """The ranks of one start, and the part of the run that the first of them is in.

    Args:
        config: YAML of the run.
        ranks: number of processes; they meet as those of ``torchrun`` do.
        resume: go on from ``last.ckpt``.
    """

    def __init__(self, config: Path, ranks: int, resume: bool) -> None:
        self.part, self.seen = "start", Counter({"start": 1})
        self.times = [("start", time.monotonic())]
        self.codes: dict[int, int] = {}
        """Exit code of each rank that has ended; -9 for SIGKILL."""
        self._log = config.parent / "log.txt"
        args = ["fit", "-c", str(config), *(("--ckpt_path", "last") if resume else ())]
        self._read, write = os.pipe()
        port = _free_port()
        self._pids = [self._fork(args, rank, ranks, port, write) for rank in range(ranks)]
        os.close(write)

    def _fork(self, args: list[str], rank: int, ranks: int, port: int, write: int) -> int:
        pid = os.fork()
        if pid:
            return pid
        code: object = 70
        try:
            handle = os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(handle, 1)
            os.dup2(handle, 2)
            os.environ[PIPE] = str(write if rank == 0 else os.open(os.devnull, os.O_WRONLY))
            if ranks > 1:
                places = {"LOCAL_RANK": rank, "NODE_RANK": 0, "WORLD_SIZE": ranks, "MASTER_PORT": port}
                os.environ.update({name: str(value) for name, value in places.items()}, MASTER_ADDR="127.0.0.1")
            swirl(args)
            code = 0
        except SystemExit as end:
            code = end.code
            if not isinstance(code, int):
                print(code, file=sys.stderr)
                code = 1
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(int(str(code)))

    def poll(self, seconds: float) -> bool:
        """Wait so long, or until a part begins; tell whether any rank still runs."""
        if select.select([self._read], [], [], max(0.0, seconds))[0]:
            words = os.read(self._read, 65536).decode().split()
            for part in words:
                self.part = part
                self.seen[part] += 1
                self.times.append((part, time.monotonic()))
            if not words:  # the first rank has ended
                time.sleep(0.01)
        for rank, pid in enumerate(self._pids):
            if rank not in self.codes:
                ended, status = os.waitpid(pid, os.WNOHANG)
                if ended:
                    self.codes[rank] = os.waitstatus_to_exitcode(status)
        return len(self.codes) < len(self._pids)

    def kill(self, number: signal.Signals, ranks: list[int]) -> None:
        """Send a signal to ranks that still run."""
        for rank in ranks:
            if rank not in self.codes:
                os.kill(self._pids[rank], number)

    def end(self, seconds: float) -> list[int]:
        """Wait until all have ended; those that take longer are killed, and their numbers are returned."""
        until = time.monotonic() + seconds
        while self.poll(0.05) and time.monotonic() < until:
            pass
        late = [rank for rank in range(len(self._pids)) if rank not in self.codes]
        self.kill(signal.SIGKILL, late)
        while self.poll(0.05):
            pass
        os.close(self._read)
        return late


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
