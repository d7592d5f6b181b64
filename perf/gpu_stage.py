"""One stage of :mod:`perf.gpu_day`: where it runs, and how it measures."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer

from perf.floor import Rates, measure
from perf.gpu_day import write

GIB = 2**30
QUIET = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False)


@dataclass(frozen=True)
class Stage:
    """One stage: where it runs, and where its numbers go."""

    name: str
    device: str
    small: bool
    out: Path

    @property
    def on_gpu(self) -> bool:
        """Whether it measures, and is no rehearsal."""
        return self.device == "cuda"

    def say(self, what: str, value: Any, wanted: Any = "") -> None:
        """Append a number, or a word, to the results."""
        value = float(f"{value:.4g}") if isinstance(value, float) else value
        write(self.out / "results.jsonl", stage=self.name, what=what, value=value, wanted=wanted)

    @contextmanager
    def part(self, what: str) -> Iterator[None]:
        """Make a failure within a line of the table; the stage goes on."""
        try:
            yield
        except Exception as error:
            traceback.print_exc()
            self.say(what, f"FAILED {type(error).__name__}: {str(error)[:200]}", "no failure")
        if self.on_gpu:
            torch.cuda.empty_cache()

    def seconds(self, call: Callable[[], object], repeats: int = 3) -> float:
        """Time a call: the median of some, after one that is not counted."""
        times = []
        for _ in range(1 + repeats):
            self._wait()
            began = time.perf_counter()
            call()
            self._wait()
            times.append(time.perf_counter() - began)
        return median(times[1:])

    def peak(self, call: Callable[[], object]) -> float:
        """Measure the allocator's peak within a call, in GiB; NaN on CPUs."""
        if not self.on_gpu:
            return float("nan")
        torch.cuda.reset_peak_memory_stats()
        call()
        return torch.cuda.max_memory_allocated() / GIB

    def trainer(self, folder: Path, *callbacks: Callback, **options: Any) -> Trainer:
        """Make a Trainer on the device, that prints and keeps nothing."""
        accelerator = "gpu" if self.on_gpu else "cpu"
        return Trainer(
            accelerator=accelerator, devices=1, default_root_dir=folder, callbacks=list(callbacks), **(QUIET | options)
        )

    def rates(self, dtype: str) -> Rates:
        """Measure products and copies; in a rehearsal in float32, since bfloat16 takes CPUs minutes."""
        return measure(self.device, dtype if self.on_gpu else "float32", torch.get_num_threads())

    def _wait(self) -> None:
        if self.on_gpu:
            torch.cuda.synchronize()
