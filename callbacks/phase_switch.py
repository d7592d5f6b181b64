"""The phases of SWIRL by epoch."""

from __future__ import annotations

import math
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy

from swirl_lightning.schedule import WARMUP, PhaseLR, PhaseSchedule


class PhaseSwitch(Callback):
    """Flips, each epoch, which model is the policy and which gives the reward.

    At the start of a phase it refreshes the frozen adapters, clears the optimiser's state and starts a new
    learning-rate curve. The training ends with the schedule, or with ``max_epochs`` if that comes first.
    Everything follows from the epoch, so a resumed run goes on in the phase where it stopped.

    Args:
        warmup_epochs: epochs of SFT on labelled triples; 0 starts with RL.
        phases: phases of one iteration, in turn: ``fwm`` (Phase I), ``idm`` (Phase II), ``bootstrap``.
            ``[idm, fwm]`` with ``iterations: 1`` is the paper's one-shot variant.
        iterations: number of iterations; None goes on until ``max_epochs``.
        refresh_references: snapshot the references of the KL at the start of every iteration; False keeps
            the models of the first one.

    Raises:
        ValueError: an unknown phase or an empty schedule.

    Example:
        >>> from swirl_lightning.callbacks import PhaseSwitch
        >>> switch = PhaseSwitch(warmup_epochs=2, iterations=1)
        >>> [switch.schedule.at(epoch).name for epoch in range(4)]
        ['warmup', 'warmup', 'fwm', 'idm']
    """

    def __init__(
        self,
        warmup_epochs: int = 1,
        phases: list[str] | tuple[str, ...] = ("fwm", "idm"),
        iterations: int | None = None,
        refresh_references: bool = True,
    ) -> None:
        self.schedule = PhaseSchedule(warmup_epochs, tuple(phases), iterations)
        self.refresh_references = refresh_references

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Hand the schedule to the module, and make the trainer reload its data with each phase."""
        pl_module.schedule = self.schedule  # type: ignore[assignment]
        trainer.reload_dataloaders_every_n_epochs = 1  # type: ignore[attr-defined]
        if isinstance(trainer.strategy, DDPStrategy):
            # the adapter at rest gets no gradient; toggling requires_grad instead would break DDP silently
            trainer.strategy._ddp_kwargs["find_unused_parameters"] = True

    def on_train_epoch_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Begin the phase of this epoch. (Not called when an epoch is resumed in its middle.)"""
        phase = self.schedule.at(trainer.current_epoch)
        pl_module.label = f"{phase.name} {phase.iteration + 1} unfinished"
        steps = math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches)
        curve: PhaseLR = trainer.lr_scheduler_configs[0].scheduler  # type: ignore[assignment]
        if phase.name == WARMUP:
            if trainer.current_epoch == 0:
                curve.begin(WARMUP, steps * self.schedule.warmup_epochs)
            return
        if phase.starts_iteration and (self.refresh_references or phase.iteration == 0):
            pl_module.adapters.refresh_references()
        pl_module.adapters.refresh_rewards()
        trainer.optimizers[0].state.clear()  # momenta of the last phase belong to another objective
        curve.begin(phase.name, steps)

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
        """Name the weights that stand after the last batch, before any checkpoint is written."""
        if trainer.is_last_batch:
            phase = self.schedule.at(trainer.current_epoch)
            pl_module.label = phase.ends or f"after {phase.name} {phase.iteration + 1}"

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Stop at the end of the schedule."""
        if self.schedule.epochs is not None and trainer.current_epoch + 1 >= self.schedule.epochs:
            trainer.should_stop = True
