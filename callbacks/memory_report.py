"""The memory that a training will need, printed before it starts."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn

from swirl_lightning.checkpoints.loops import epochs_done
from swirl_lightning.data import TransitionDataModule
from swirl_lightning.engine.ranges import check_ranges
from swirl_lightning.memory import GIB, LongestPair, MemoryEstimate, MicroBatch, report
from swirl_lightning.schedule import PhaseName


class MemoryReport(Callback):
    """Prints parameters, bytes and the estimated peak before training, and warns if that does not fit.

    Validation is left out: ``data.eval_batch_size`` bounds what it takes.

    The longest states of a few transitions of each split and the longest completions that may be generated are
    assumed. Takes a few forward and backward passes with a few rows; see :func:`swirl_lightning.memory.report`.

    Args:
        samples: number of transitions of each split among which the longest states are sought.

    Attributes:
        estimate: the printed estimate, None before that and on other ranks than 0.

    Raises:
        ValueError: ``samples`` is not positive.

    Example::

        >>> from swirl_lightning.callbacks import MemoryReport
        >>> MemoryReport(samples=4).estimate
    """

    def __init__(self, samples: int = 16) -> None:
        check_ranges("MemoryReport", {"samples": samples}, samples="whole [1, inf)")
        self.samples = samples
        self.estimate: MemoryEstimate | None = None
        self._epoch = 0  # the first that is trained

    def on_load_checkpoint(self, trainer: Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Note where a resumed run goes on: Lightning's own count is restored after the report."""
        if trainer.state.fn == TrainerFn.FITTING:
            self._epoch = epochs_done(checkpoint)

    def on_fit_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Print the report, when model and optimiser are on their device and before the first step."""
        data = getattr(trainer, "datamodule", None)
        if not trainer.is_global_zero or not isinstance(data, TransitionDataModule):
            return
        begin, self._epoch = max(self._epoch, trainer.current_epoch), 0  # a later fit may go on from no checkpoint
        if not (phases := data.phases(begin)):
            return
        # within max_cached_tokens, the rollouts of an optimiser step are sampled together
        together = data.accumulation(PhaseName.ONE) if pl_module.max_cached_tokens else 1
        batch = MicroBatch(
            pairs=data.batch_size,
            warmup=data.warmup_batch_size,
            labelled=data.labelled_per_batch,
            sampled=together * data.batch_size,
        )
        device, engine = pl_module.device, pl_module.models.engine
        try:  # without a trace in random states, of parts that load or of dropout
            with torch.random.fork_rng([device] if device.type == "cuda" else []):
                self.estimate = report(pl_module, batch, self._longest(pl_module, data), phases)
        except torch.OutOfMemoryError as error:
            rank_zero_warn(f"the memory of the training is not estimated, for a few rows alone do not fit: {error}")
            return
        finally:
            for budget in (engine.scoring_budget, engine.sampling_budget):
                budget.reset()
        rank_zero_info(str(self.estimate))
        if pl_module.device.type == "cuda":
            there = torch.cuda.get_device_properties(pl_module.device).total_memory
            if self.estimate.peak > there:
                rank_zero_warn(
                    f"the estimated peak of {self.estimate.peak / GIB:.1f} GiB exceeds the {there / GIB:.1f} GiB of "
                    "this device: lower data.batch_size or grpo.group_size, set max_tokens_per_forward and "
                    "max_cached_tokens, or turn backbone.gradient_checkpointing on"
                )

    def _longest(self, module: Any, data: TransitionDataModule) -> LongestPair:
        before, after = module.encode_pairs(data.sample("fit", self.samples))
        return LongestPair(max(before, key=len), max(after, key=len))
