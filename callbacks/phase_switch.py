"""Callback that switches between the phases of SWIRL."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn

from swirl_lightning.checkpoints.loops import (
    epochs_done,
    stay_in_unfinished_epoch,
    stop_after_last_batch,
    validate_anew,
)
from swirl_lightning.checkpoints.state import as_written
from swirl_lightning.data import TransitionDataModule
from swirl_lightning.schedule import WARMUP, PhaseLR, PhaseName, PhaseOptimConfig, PhaseSchedule
from swirl_lightning.training.data_parallel import ReducedAdapters, set_options


class PhaseSwitch(Callback):
    """Sets, for each epoch, the model that is the policy and the model that gives the reward.

    At the start of a phase it refreshes the frozen adapters, clears the optimiser's state and starts a new
    learning-rate curve. The training ends with the schedule, or with ``max_epochs`` if that comes first.
    The epoch determines the phase, and a checkpoint holds the phase that has begun. So a run resumed from any
    checkpoint ends with the weights of a run that was never stopped. A ``fast_dev_run`` has an epoch of each phase.

    Args:
        warmup_epochs: epochs of SFT on labelled triples; 0 starts with RL.
        phases: phases of one iteration, in turn: ``fwm`` (Phase I), ``idm`` (Phase II), ``bootstrap``.
            ``[fwm]`` with ``iterations: 1`` is the paper's IDM→FWM (Phase I alone), ``[idm]`` its FWM→IDM.
        iterations: number of iterations; None goes on until ``max_epochs``.

    Raises:
        ValueError: an unknown phase or an empty schedule; at setup, a warm-up of the learning rate that is longer than
            its phase.
        TypeError: at setup, the data are no TransitionDataModule, which gives each phase its own.

    Example:
        >>> from swirl_lightning.callbacks import PhaseSwitch
        >>> switch = PhaseSwitch(warmup_epochs=2, iterations=1)
        >>> [switch.schedule.at(epoch).name.value for epoch in range(4)]
        ['warmup', 'warmup', 'fwm', 'idm']
    """

    def __init__(
        self,
        warmup_epochs: int = 1,
        phases: list[str] | tuple[str, ...] = ("fwm", "idm"),
        iterations: int | None = None,
    ) -> None:
        self.schedule = self._given = PhaseSchedule(warmup_epochs, tuple(phases), iterations)
        self._begun: int | None = None  # the epoch whose phase began last
        self._after_last_batch = False  # whether the run goes on from an epoch's last batch

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Hand the schedule to the module, and make the trainer reload its data with each phase."""
        self.schedule = self._given
        if stage == "fit":
            self._begun, self._after_last_batch = None, False
            if trainer.fast_dev_run:  # type: ignore[attr-defined]
                self._run_each_phase_once(trainer)
        pl_module.schedule = self.schedule  # type: ignore[assignment]
        pl_module.scheduled = True  # type: ignore[assignment]
        trainer.reload_dataloaders_every_n_epochs = 1  # type: ignore[attr-defined]
        if (epochs := self.schedule.epochs) is not None:  # so that a finished run, resumed, has nothing left to do
            loop = trainer.fit_loop
            loop.max_epochs = epochs if loop.max_epochs in (None, -1) else min(loop.max_epochs, epochs)
        set_options(trainer.strategy)
        self._reduced = ReducedAdapters()  # Lightning wraps the model anew
        if stage == "fit":
            data = trainer.datamodule  # type: ignore[attr-defined]
            if not isinstance(data, TransitionDataModule):
                told = "PhaseSwitch gives each phase its own data"
                raise TypeError(f"{told}: fit on a TransitionDataModule, not {type(data).__name__}")
            if not trainer.fast_dev_run:  # type: ignore[attr-defined]
                self._check_warmups(data, pl_module)

    def _run_each_phase_once(self, trainer: Trainer, done: int = 0) -> None:
        """Let a development run go through all phases; Lightning would end it with the first epoch.

        Args:
            trainer: runs it.
            done: epochs of the run that it goes on from.
        """
        warmup = min(self._given.warmup_epochs, done + 1)
        self.schedule = replace(self._given, warmup_epochs=warmup)
        phases = 0 if self.schedule.iterations == 0 else len(self.schedule.phases)
        ends = [max(done, warmup) + phases, *([self.schedule.epochs] if self.schedule.epochs is not None else [])]
        trainer.fit_loop.max_epochs = min(ends)
        trainer.fit_loop.epoch_loop.max_steps = -1

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forget what was cut for a development run: data read the schedule before the next setup."""
        self.schedule = self._given

    def _check_warmups(self, data: TransitionDataModule, pl_module: Any) -> None:
        """Check, before the model loads, that the warm-up of each learning rate fits into its phase."""
        optim: PhaseOptimConfig = pl_module.optim
        for phase in data.phases():
            optim.of(phase).check(optim.name_of(phase), self._steps(data, phase))

    def _steps(self, data: TransitionDataModule, phase: PhaseName) -> int:
        """Count the optimiser steps of a phase; the warm-up is one phase over all of its epochs."""
        return data.steps_per_epoch(phase) * (self.schedule.warmup_epochs if phase == WARMUP else 1)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Begin the phase of this epoch."""
        self._begin(trainer, pl_module)

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Begin the phase if its epoch was entered without the hook above, as Lightning does on some resumes."""
        if self._begun != trainer.current_epoch:
            self._begin(trainer, pl_module)
        roles = self.schedule.at(trainer.current_epoch).name.trains or pl_module.roles
        self._reduced.set(trainer.strategy, pl_module, roles)

    def _begin(self, trainer: Trainer, pl_module: Any) -> None:
        phase = self.schedule.at(trainer.current_epoch)
        self._begun = trainer.current_epoch
        pl_module.label = f"{phase.name} {phase.iteration + 1} unfinished"
        steps = self._steps(trainer.datamodule, phase.name)  # type: ignore[attr-defined]
        curve: Any = next((config.scheduler for config in trainer.lr_scheduler_configs), None)
        if not isinstance(curve, PhaseLR):
            raise TypeError(
                f"configure_optimizers gives the scheduler {type(curve).__name__}, and PhaseSwitch begins a curve with "
                "each phase: keep SWIRL's scheduler (PhaseLR), and set learning rates by model.optim"
            )
        if phase.name == WARMUP:
            if trainer.current_epoch == 0:
                curve.begin(WARMUP, steps)
            else:
                curve.resize(steps)
            return
        # a KL to what a model was before supervision, or before the other phase of shared weights, would undo these
        begins = phase.starts_iteration or self.schedule.at(trainer.current_epoch - 1).name == PhaseName.BOOTSTRAP
        if begins or pl_module.shared_weights:
            pl_module.adapters.refresh_references()
        pl_module.adapters.refresh_rewards()
        trainer.optimizers[0].state.clear()  # momenta of the last phase belong to another objective
        curve.begin(phase.name, steps)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Fit a warm-up's learning rate to its length, and take no further batch in an epoch that was over.

        A resumed run may have more epochs of warm-up, or other batches, than the one it goes on from. Lightning's loop
        takes a further batch where no validation is due: without ``limit_train_batches`` there is none, with it the
        loader has some left. With ``max_steps`` it also goes on within an epoch that was over, be the checkpoint
        written in its last hook or after the fit; what is set here is its own state without ``max_steps``.
        """
        if self._begun == trainer.current_epoch and self.schedule.at(trainer.current_epoch).name == WARMUP:
            steps = self._steps(trainer.datamodule, WARMUP)  # type: ignore[attr-defined]
            trainer.lr_scheduler_configs[0].scheduler.resize(steps)  # type: ignore[union-attr]
        loop = trainer.fit_loop
        epochs: Any = loop.epoch_progress.current
        if loop.restarting and loop._iteration_based_training() and epochs.processed == epochs.ready == epochs.started:
            if loop.restarted_on_epoch_end:
                loop.epoch_progress.increment_completed()
            loop.epoch_loop.restarting = loop._restarting = False
            loop.reset_restart_stage()  # else the next epoch is not counted, nor are its hooks called
        over = loop.epoch_loop.batch_progress.current.ready >= trainer.num_training_batches
        if self._after_last_batch and over and loop._data_fetcher is not None:
            loop._data_fetcher.done = True

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
        """Name the weights that stand after the last batch, before any checkpoint is written."""
        if trainer.is_last_batch:
            phase = self.schedule.at(trainer.current_epoch)
            pl_module.label = phase.ends or f"after {phase.name} {phase.iteration + 1}"

    def state_dict(self) -> dict[str, Any]:
        """Return the schedule and the epoch whose phase has begun, for the checks of a resumed run."""
        return {**asdict(self.schedule), "begun": self._begun}

    def check_resume(self, checkpoint: dict[str, Any], max_epochs: int | None = None) -> None:
        """Refuse a schedule that ends before the epochs already run, or gives them other names.

        Args:
            checkpoint: as saved by a run of SWIRL.
            max_epochs: the Trainer's.

        Raises:
            ValueError: it is one of them; names differ up to and with the epoch that the checkpoint stands in.
        """
        saved = checkpoint["callbacks"].get(self.state_key)
        if not saved:
            return
        with as_written("the number of epochs"):
            entered = checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["ready"]
        done = epochs_done(checkpoint)
        before = _schedule(saved)
        # from there on both go round, and a damaged checkpoint may have entered any number of epochs
        common = min(before.warmup_epochs, self.schedule.warmup_epochs)
        told = min(entered, common + len(before.phases) * len(self.schedule.phases))
        were, would_be = (
            [schedule.at(epoch).name.value for epoch in range(told)] for schedule in (before, self.schedule)
        )
        if were != would_be:
            raise ValueError(
                f"the checkpoint's epochs were {were}, and by this schedule they would have been {would_be}: set "
                f"phase_switch.warmup_epochs (there {before.warmup_epochs}) and phases (there {list(before.phases)}) "
                "so that they agree"
            )
        ends = {"phase_switch.iterations": self.schedule.epochs, "trainer.max_epochs": max_epochs}
        for option, end in ends.items():
            if end not in (None, -1) and done > end:
                raise ValueError(
                    f"the checkpoint's run has done {done} epochs, and {option} ends it after {end}: raise it, or test "
                    "the checkpoint as it is"
                )

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Continue after the last finished batch.

        Raises:
            ValueError: as `check_resume`.
        """
        saved = checkpoint["callbacks"].get(self.state_key)
        if not saved or trainer.state.fn != TrainerFn.FITTING:
            return
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            self._run_each_phase_once(trainer, epochs_done(checkpoint))
            pl_module.schedule = self.schedule  # type: ignore[assignment]
        self.check_resume(checkpoint, trainer.max_epochs)
        self._begun = saved.get("begun", checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["ready"] - 1)
        self._after_last_batch = stop_after_last_batch(checkpoint)
        validate_anew(checkpoint)
        stay_in_unfinished_epoch(checkpoint)


def _schedule(saved: dict[str, Any]) -> PhaseSchedule:
    """Build the schedule of a state of PhaseSwitch; ValueError if it holds none."""
    try:
        if type(saved.get("begun", 0)) is not int and saved["begun"] is not None:
            raise TypeError("begun is no epoch")
        options = {name: saved[name] for name in PhaseSchedule.__dataclass_fields__}
        return PhaseSchedule(**options | {"phases": tuple(options["phases"])})
    except (TypeError, KeyError, ValueError) as error:
        raise ValueError(f"the checkpoint's schedule of phases is damaged ({error}): {str(saved)[:200]}") from None
