"""Metrics of an optimiser step: means over its micro-batches and all ranks, by one reduction."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

_IN_PROGRESS_BAR = {"reward", "kl", "fwm_nll", "idm_nll"}


class StepMetrics:
    """Sums of the metrics of the micro-batches since the last optimiser step."""

    def __init__(self) -> None:
        self._sums: dict[str, tuple[Tensor | float, Tensor | float]] = {}  # value times rows, and rows

    def add(self, prefix: str, means: Mapping[str, Tensor | float], rows: Tensor | float) -> None:
        """Count means over ``rows`` rows of a micro-batch; of none, where another rank may have some, their value is 0.

        Args:
            prefix: of their names.
            means: scalars by name; the names are the same on every rank.
            rows: number of rows, or of tokens, that they are means over; a scalar on the device is not waited for.
        """
        for name, mean in means.items():
            total, count = self._sums.get(prefix + name, (0.0, 0.0))
            value = mean.detach().float() if isinstance(mean, Tensor) else float(mean)
            self._sums[prefix + name] = total + value * rows, count + rows

    def add_values(self, prefix: str, values: Mapping[str, Tensor]) -> None:
        """Count (N,) values of rows of a micro-batch; NaN stands for a row that has none."""
        for name, given in values.items():
            count = (~given.isnan()).sum()
            self.add(prefix, {name: given.float().nansum() / count.clamp(min=1)}, count)

    def log(self, module: LightningModule) -> None:
        """Log the means, and begin anew; one of no row on any rank is left out. Collective."""
        if not self._sums:
            return
        names = sorted(self._sums)
        device = module.trainer.strategy.root_device
        totals, counts = (torch.stack([_scalar(self._sums[name][n], device) for name in names]) for n in (0, 1))
        self._sums = {}
        totals, counts = module.trainer.strategy.reduce(torch.stack([totals, counts]), reduce_op="sum")
        for name, mean, count in zip(names, totals / counts, counts.tolist(), strict=True):
            if count:
                module.log(name, mean, prog_bar=name.partition("/")[2] in _IN_PROGRESS_BAR)

    def clear(self) -> None:
        """Forget the micro-batches of a step that was not taken."""
        self._sums = {}

    def state(self) -> dict[str, Any]:
        """Return the sums so far, for a checkpoint between two micro-batches of a step."""
        return {name: [float(total), float(count)] for name, (total, count) in self._sums.items()}

    def restore(self, state: dict[str, Any], device: torch.device) -> None:
        """Go on from a :meth:`state`.

        Raises:
            TypeError: it is none, as in a damaged checkpoint.
        """
        for name, (total, count) in state.items():
            if not (isinstance(name, str) and isinstance(total, float) and isinstance(count, float)):
                raise TypeError("metrics of the step are no numbers by name")
            self._sums[name] = torch.tensor(total, device=device), count


def _scalar(value: Tensor | float, device: torch.device) -> Tensor:
    """Put a number on the device; a learner's metric may be a plain number, or lie on the CPU."""
    return value.to(device) if isinstance(value, Tensor) else torch.full((), float(value), device=device)
