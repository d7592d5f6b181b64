"""Measurement of time by part of a step, and of peak memory above the model."""

from __future__ import annotations

import ctypes
import gc
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import psutil
import torch
from torch.profiler import ProfilerActivity, profile, record_function

UPDATE = "policy update"


class Meter:
    """Seconds of each phase by part, and the peak memory of this process and its children, in bytes.

    Memory counts from where the first step begins, with the model loaded. On CUDA it is the allocator's,
    elsewhere the resident set, sampled every 10 ms.

    Args:
        device: ``cpu`` or ``cuda``.
        profiled: also profile, and keep the operations by self time.
    """

    def __init__(self, device: str, profiled: bool = False) -> None:
        self.device, self.profiled = device, profiled
        self.seconds: dict[str, dict[str, float]] = {}
        self.operations: dict[str, list[dict[str, Any]]] = {}
        self._profile: Any = None
        self._base: int | None = None

    # ---- time ------------------------------------------------------------------------------------
    def start(self, phase: str) -> None:
        """Begin a step of ``phase``."""
        if self._base is None:
            self._watch_memory()
        self._parts: dict[str, float] = {}
        self._phase = phase
        if self.profiled:
            activities = [ProfilerActivity.CPU, ProfilerActivity.CUDA][: 1 + (self.device == "cuda")]
            self._profile = profile(activities=activities)
            self._profile.__enter__()
        self._began = self._now()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count the time within under ``name``."""
        began = self._now()
        with record_function(name):
            yield
        self._parts[name] = self._parts.get(name, 0.0) + self._now() - began

    def stop(self) -> None:
        """End the step; time outside of all parts is the policy update."""
        total = self._now() - self._began
        self.seconds[self._phase] = {**self._parts, UPDATE: total - sum(self._parts.values()), "step": total}
        if self._profile is not None:
            self._profile.__exit__(None, None, None)
            self.operations[self._phase] = _operations(self._profile, self.device)

    def _now(self) -> float:
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    # ---- memory ----------------------------------------------------------------------------------
    def _watch_memory(self) -> None:
        gc.collect()
        if self.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
            self._base = torch.cuda.memory_allocated()
            return
        if sys.platform == "linux":
            # return memory that loading has freed: otherwise a step could use it unseen
            ctypes.CDLL(None).malloc_trim(0)
        self._base = self._highest = _resident([psutil.Process()])
        self._running = True
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def peak(self) -> int:
        """Return the peak in bytes above the model, and stop sampling."""
        assert self._base is not None, "no step was measured"
        if self.device == "cuda":
            return torch.cuda.max_memory_allocated() - self._base
        self._running = False
        self._thread.join()
        return self._highest - self._base

    def _watch(self) -> None:
        process = psutil.Process()
        sample, children = 0, []
        while self._running:
            if sample % 100 == 0:  # looking for children reads the whole process table: once a second will do
                children = process.children(recursive=True)
            self._highest = max(self._highest, _resident([process, *children]))
            sample += 1
            time.sleep(0.01)


def _resident(processes: list[psutil.Process]) -> int:
    """Return the bytes in memory; a process that has ended counts as 0."""
    total = 0
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            total += process.memory_info().rss
    return total


def _operations(recorded: Any, device: str, top: int = 15) -> list[dict[str, Any]]:
    """Return the operations with the largest self time, with their shares."""
    key = "self_device_time_total" if device == "cuda" else "self_cpu_time_total"
    events = recorded.key_averages()
    whole = sum(getattr(event, key) for event in events)
    largest = sorted(events, key=lambda event: -getattr(event, key))[:top]
    return [
        {"operation": e.key, "share": getattr(e, key) / whole, "seconds": getattr(e, key) / 1e6, "calls": e.count}
        for e in largest
    ]
