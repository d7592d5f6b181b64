"""DataModule of all benchmarks: the transitions of each phase."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal, NoReturn

import numpy as np
from lightning import LightningDataModule
from torchmetrics import MetricCollection

from swirl_lightning.data.limits import check_val_interval, within
from swirl_lightning.data.loader import TransitionLoader
from swirl_lightning.data.reading import first
from swirl_lightning.data.rows import Chosen, Joined, StateOnly, balanced, counterfactuals, laps
from swirl_lightning.data.simulator import Simulator
from swirl_lightning.engine.noise import global_seed
from swirl_lightning.engine.ranges import check_ranges
from swirl_lightning.metrics.exact_match import ExactMatch
from swirl_lightning.schedule import WARMUP, PhaseName, PhaseSchedule
from swirl_lightning.transition import Transition

Split = Literal["warmup", "state_only", "validation", "test"]


class TransitionDataModule(LightningDataModule, ABC):
    """DataModule with loaders for the phases of SWIRL; a benchmark adds :meth:`load_split` and its metrics.

    Training gives the labelled split in the warm-up and the state-only split afterwards, without
    actions. The Trainer must reload its loaders in every epoch, which ``PhaseSwitch`` sets.

    Args:
        batch_size: transitions per training batch and device.
        warmup_batch_size: the same in the warm-up; None for ``batch_size``.
        eval_batch_size: the same for validation, test and prediction; None for ``batch_size``.
        num_workers: worker processes that load records; 0 loads in the main process.
        seed: of the order of rows and of the choice of pairs; None for that of ``seed_everything``.
        pairs_per_iteration: state-only pairs of one iteration, used in both of its phases. Iteration i has
            pairs i*n to (i+1)*n of a shuffled order, which wraps around. None shows all in every iteration.
        pairs_per_step: transitions of one optimiser step, over all devices: gradients are accumulated over
            ``pairs_per_step / (batch_size * devices)`` batches, in the warm-up with ``warmup_batch_size``. None
            leaves it to ``Trainer.accumulate_grad_batches``.
        labelled_per_batch: labelled triples in the loss of each batch of state-only pairs, on each device (labelled
            replay).
        labelled_share: share of labelled triples among the transitions of the phase ``bootstrap``, in [0, 0.99]: they
            are mixed with an iteration's pairs, each iteration's in an order of their own; when all have been taken,
            they begin anew. This is the paper's SFT-Merge.
        balanced_labels: repeat labelled triples, wherever they are trained on, until each first word of an action, its
            verb, is as frequent as the most frequent one. An epoch of the warm-up then is that much longer.
        counterfactual_share: share of an iteration's pairs, in [0, 1], for which Phase I rolls out an action of the
            labelled triples, drawn at random, in place of the one that the IDM reads from the pair. So the FWM
            practises actions that no pair shows; the reward needs no observed y. Of states in words, those of
            :meth:`possible_actions` are drawn; a pair that allows none is left as it is.
        counterfactual_actions: how these actions begin, such as ``drop``; None takes all that labels have.
    """

    first_epoch = 0
    """Epoch that the fit goes on from, where that is known before setup: phases that are over need no data."""

    def __init__(
        self,
        *,
        batch_size: int = 8,
        warmup_batch_size: int | None = None,
        eval_batch_size: int | None = None,
        num_workers: int = 0,
        seed: int | None = None,
        pairs_per_iteration: int | None = None,
        pairs_per_step: int | None = None,
        labelled_per_batch: int = 0,
        labelled_share: float = 0.0,
        balanced_labels: bool = False,
        counterfactual_share: float = 0.0,
        counterfactual_actions: list[str] | None = None,
    ) -> None:
        super().__init__()
        self.batch_size = batch_size
        self.warmup_batch_size = batch_size if warmup_batch_size is None else warmup_batch_size
        self.eval_batch_size = batch_size if eval_batch_size is None else eval_batch_size
        self.num_workers = num_workers
        self.seed = global_seed() if seed is None else seed
        self.pairs_per_iteration = pairs_per_iteration
        self.pairs_per_step = pairs_per_step
        self.labelled_per_batch, self.labelled_share = labelled_per_batch, labelled_share
        self.balanced_labels = balanced_labels
        self.counterfactual_share, self.counterfactual_actions = counterfactual_share, counterfactual_actions
        if isinstance(counterfactual_actions, str):
            raise ValueError(f"data.counterfactual_actions must be a list, got the string {counterfactual_actions!r}")
        sizes = dict.fromkeys(("batch_size", "warmup_batch_size", "eval_batch_size"), "whole [1, inf)")
        parts = dict.fromkeys(("pairs_per_iteration", "pairs_per_step"), "whole [1, inf) or null")
        check_ranges(
            "data",
            vars(self),
            num_workers="whole [0, 1024]",
            seed="whole [0, inf)",
            labelled_per_batch="whole [0, 100000]",
            labelled_share="[0, 0.99]",
            counterfactual_share="[0, 1]",
            **sizes,
            **parts,
        )
        self._splits: dict[str, Sequence[Transition]] = {}
        self._balanced: Sequence[Transition] | None = None
        self._counterfactuals: dict[int, Sequence[Transition]] = {}  # by iteration
        self._accumulated = 1  # the value that we have set in the Trainer

    @classmethod
    def load_from_checkpoint(cls, *args: Any, **kwargs: Any) -> NoReturn:
        """Refuse: runs save no settings of data, and those in a foreign checkpoint name classes that Lightning imports.

        Raises:
            TypeError: always.
        """
        raise TypeError(f"a checkpoint holds no settings of data: build {cls.__name__} with its arguments")

    # ---- what a benchmark says -------------------------------------------------------------------
    @abstractmethod
    def load_split(self, split: Split) -> Sequence[Transition]:
        """Read the records of a split; called once. All splits but ``state_only`` have actions.

        Any sequence will do: one that reads records when they are accessed keeps memory low, and is then
        read by ``num_workers`` processes.
        """

    def check(self) -> None:
        """Make cheap checks (files exist, options agree); runs on every device before any model loads."""

    def state_metrics(self) -> MetricCollection:
        """Make the metrics of the FWM, called as ``update(predicted_states, transitions)``."""
        return MetricCollection({"exact_match": ExactMatch("after")})

    def action_metrics(self) -> MetricCollection:
        """Make the metrics of the IDM, called as ``update(predicted_actions, transitions)``."""
        return MetricCollection({"exact_match": ExactMatch("action")})

    def possible_actions(self, state: str) -> Sequence[str] | None:
        """Return actions that a state in words allows, where that can be told from it, for Phase I to practise.

        None: those of the labels that fit it, by their words (:class:`swirl_lightning.data.rows.Fitting`).
        """
        return None

    def simulator(self) -> Simulator | None:
        """Return the true world, where there is one that starts from a state.

        Raises:
            ImportError: it is not installed.
        """
        return None

    # ---- Lightning's hooks -----------------------------------------------------------------------
    def setup(self, stage: str) -> None:
        """Run :meth:`check`, load the splits that the command needs, and refuse phases that cannot be trained.

        Raises:
            ValueError: a split is empty or too small for one batch, or ``pairs_per_step`` is no multiple of the
                transitions in a batch on all devices, or stands beside ``Trainer.accumulate_grad_batches``; or a phase
                has fewer batches than ``Trainer.val_check_interval``, or none within ``limit_train_batches``.
        """
        self.check()
        if stage == "predict":
            loader = self._eval_loader(self.predict_rows())
            within(self.trainer, "limit_predict_batches", len(loader), "what is predicted from")
            return
        for split in self.splits_needed(stage):
            rows = self.split(split)
            if split in ("validation", "test"):
                option = "limit_test_batches" if split == "test" else "limit_val_batches"
                within(self.trainer, option, len(self._eval_loader(rows)), f"the split {split!r}")
        if stage == "fit" and self.trainer:
            given = self.trainer.accumulate_grad_batches
            if self.pairs_per_step is not None and given not in (1, self._accumulated):
                raise ValueError(
                    f"data.pairs_per_step {self.pairs_per_step} and trainer.accumulate_grad_batches {given} both say "
                    "how many transitions an optimiser step has: set one of the two"
                )
            for phase in self.phases():
                # raises where a phase would have none
                check_val_interval(self.trainer, self.batches_per_epoch(phase), _epoch_of(phase))
                self.accumulation(phase)
                self._phase_loader(phase).say_left_out(_epoch_of(phase))

    def splits_needed(self, stage: str) -> list[Split]:
        """Return the splits that a command reads: ``stage`` is ``fit``, ``validate``, ``test`` or ``predict``.

        In a fit, they follow from PhaseSwitch's schedule, ``max_epochs`` and ``limit_val_batches``.
        """
        if stage in ("test", "predict"):
            return ["test"]
        validated: list[Split] = [] if self.trainer and self.trainer.limit_val_batches == 0 else ["validation"]
        if stage == "validate":
            return validated
        trained: dict[Split, None] = {"warmup" if phase == WARMUP else "state_only": None for phase in self.phases()}
        merged = self.labelled_share and PhaseName.BOOTSTRAP in self.phases()
        known = getattr(getattr(self.trainer, "lightning_module", None), "known_tokens", None)
        practised = self.counterfactual_share or (known is not None and known.asked)
        if self.labelled_per_batch or merged or (practised and PhaseName.ONE in self.phases()):
            trained["warmup"] = None
        return [*trained, *validated]

    def train_dataloader(self) -> TransitionLoader:
        """Give the labelled split in the warm-up, the iteration's state-only pairs in other phases."""
        module = getattr(self.trainer, "lightning_module", None)
        phase = getattr(module, "phase", None)
        name, iteration = (WARMUP, 0) if phase is None else (phase.name, phase.iteration)
        if self.trainer:
            self._accumulated = self.trainer.accumulate_grad_batches = self.accumulation(name)
        loader = self._phase_loader(name, iteration)
        loader.limit = within(self.trainer, "limit_train_batches", len(loader), _epoch_of(name))
        return loader

    def val_dataloader(self) -> TransitionLoader:
        """Give the validation split."""
        return self._eval_loader(self.split("validation"))

    def test_dataloader(self) -> TransitionLoader:
        """Give the test split."""
        return self._eval_loader(self.split("test"))

    def predict_dataloader(self) -> TransitionLoader:
        """Give the transitions of :meth:`predict_rows`."""
        return self._eval_loader(self.predict_rows())

    # ---- splits ----------------------------------------------------------------------------------
    def predict_rows(self) -> Sequence[Transition]:
        """Return the transitions of ``swirl predict``: the test split, unless a subclass chooses others."""
        return self.split("test")

    def split(self, name: Split) -> Sequence[Transition]:
        """Return a split, loaded at the first call.

        Raises:
            ValueError: it is empty, two records have the same id, or training records lack the state after.
        """
        if name not in self._splits:
            rows = self.load_split(name)
            if len(rows) == 0:
                cure = "; to train without it set trainer.limit_val_batches to 0" if name == "validation" else ""
                raise ValueError(f"{type(self).__name__}: the split {name!r} is empty{cure}")
            known = rows if isinstance(rows, list) else []  # others read their records when they are accessed
            if known and not isinstance(known[0], Transition):
                raise TypeError(f"{type(self).__name__}.load_split gave a {type(known[0]).__name__}, no Transition")
            again = [f"{row!r}, {count} times" for row, count in Counter(row.id for row in known).items() if count > 1]
            if again:
                told = f"{len(again)} ids of the split {name!r} are of several records, whose rollouts would be drawn"
                raise ValueError(f"{type(self).__name__}: {told} alike: give each its own:{first(again)}")
            bare = [row.id for row in known if row.after is None]
            if bare and name in ("warmup", "state_only"):
                told = f"{len(bare)} of {len(rows)} records of the split {name!r} have no state after"
                raise ValueError(f"{type(self).__name__}: {told}, and training needs one:{first(bare)}")
            self._splits[name] = rows
        return self._splits[name]

    def sample(self, stage: str, most: int = 1000) -> list[Transition]:
        """Return transitions of each split that a command reads, at equal distances, pairs without their actions.

        Args:
            stage: as for :meth:`splits_needed`.
            most: of one split.
        """
        found: list[Transition] = []
        for name in self.splits_needed(stage):
            rows = self.predict_rows() if stage == "predict" else self.split(name)
            chosen = [rows[n * len(rows) // min(most, len(rows))] for n in range(min(most, len(rows)))]
            found += [row.without_action() for row in chosen] if name == "state_only" else chosen
        return found

    def labelled(self) -> Sequence[Transition]:
        """Return the labelled triples to train on, those of rare verbs repeated if ``balanced_labels``."""
        if not self.balanced_labels:
            return self.split("warmup")
        if self._balanced is None:
            self._balanced = balanced(self.split("warmup"))
        return self._balanced

    def pairs(self, iteration: int) -> Sequence[Transition]:
        """Return the state-only pairs of an iteration (0-based), without their actions."""
        rows = self.split("state_only")
        chosen = np.arange(len(rows))
        if self.pairs_per_iteration is not None:
            count = min(self.pairs_per_iteration, len(rows))  # no pair twice within an iteration
            shuffled = np.random.default_rng(self.seed).permutation(len(rows))
            chosen = shuffled[(iteration * count + np.arange(count)) % len(rows)]
        return StateOnly(rows, chosen.tolist())

    def merged(self, iteration: int) -> Sequence[Transition]:
        """Return the state-only pairs of an iteration (0-based) with their ``labelled_share`` of labelled triples."""
        pairs = self.pairs(iteration)
        if self.labelled_share == 0:
            return pairs
        labelled, count = self.labelled(), round(len(pairs) * self.labelled_share / (1 - self.labelled_share))
        random = np.random.default_rng([self.seed, iteration, 2])
        return Joined(pairs, Chosen(labelled, laps(len(labelled), count, random).tolist()))

    def with_counterfactuals(self, iteration: int) -> Sequence[Transition]:
        """Return the state-only pairs of an iteration (0-based), a share of them with a counterfactual action.

        Raises:
            ValueError: no label's action begins as ``counterfactual_actions`` say, or no x of iteration 0 allows one.
        """
        pairs = self.pairs(iteration)
        if self.counterfactual_share == 0:
            return pairs
        if iteration in self._counterfactuals:
            return self._counterfactuals[iteration]
        random = np.random.default_rng([self.seed, iteration, 3])
        replaced = random.random(len(pairs)) < self.counterfactual_share
        found = counterfactuals(
            pairs, replaced, self.split("warmup"), self.counterfactual_actions, self.possible_actions, random
        )
        if iteration == 0 and replaced.any() and not found.number:  # later on, what has been trained can go on
            told = f"data.counterfactual_share: no state before of {replaced.sum()} pairs allows an action"
            raise ValueError(f"{told}; set it to 0, or other data.counterfactual_actions")
        self._counterfactuals[iteration] = found
        return found

    # ---- phases ----------------------------------------------------------------------------------
    def accumulation(self, phase: PhaseName) -> int:
        """Count the batches whose gradients make one optimiser step of a phase.

        Raises:
            ValueError: ``pairs_per_step`` is no multiple of the transitions in a batch on all devices.
        """
        if self.pairs_per_step is None:
            return self.trainer.accumulate_grad_batches if self.trainer else 1
        key = "warmup_batch_size" if phase == WARMUP else "batch_size"
        size, devices = getattr(self, key), self._place()[1]
        if self.pairs_per_step % (size * devices):
            raise ValueError(
                f"data.pairs_per_step {self.pairs_per_step} is no multiple of {size} ({key}) x {devices} (devices) = "
                f"{size * devices}: change one of the three"
            )
        return self.pairs_per_step // (size * devices)

    def steps_per_epoch(self, phase: PhaseName) -> int:
        """Count the optimiser steps of an epoch of a phase, within ``limit_train_batches``."""
        return math.ceil(self.batches_per_epoch(phase) / self.accumulation(phase))

    def batches_per_epoch(self, phase: PhaseName) -> int:
        """Count the batches of an epoch of a phase, within ``limit_train_batches``.

        Raises:
            ValueError: that is a share which leaves none.
        """
        return within(self.trainer, "limit_train_batches", len(self._phase_loader(phase)), _epoch_of(phase))

    def phases(self, begin: int | None = None) -> list[PhaseName]:
        """Return the phases of the fit from an epoch (``first_epoch``) on; without PhaseSwitch the warm-up alone."""
        trainer: Any = self.trainer
        # data are set up before PhaseSwitch hands its schedule to the module
        callbacks = trainer.callbacks if trainer else []
        schedules = [s for c in callbacks if isinstance(s := getattr(c, "schedule", None), PhaseSchedule)]
        if not schedules:
            return [WARMUP]
        last = None if trainer.max_epochs == -1 or trainer.fast_dev_run else trainer.max_epochs
        return schedules[0].names(last, self.first_epoch if begin is None else begin)

    # ---- loaders ---------------------------------------------------------------------------------
    def _phase_loader(self, phase: PhaseName, iteration: int = 0) -> TransitionLoader:
        module: Any = getattr(self.trainer, "lightning_module", None)
        rank, world_size = self._place()
        warmup = phase == WARMUP
        rows = {PhaseName.BOOTSTRAP: self.merged, PhaseName.ONE: self.with_counterfactuals}.get(phase, self.pairs)
        beside = 0 if warmup else self.labelled_per_batch
        return TransitionLoader(
            self.labelled() if warmup else rows(iteration),
            batch_size=self.warmup_batch_size if warmup else self.batch_size,
            shuffle=not getattr(self.trainer, "overfit_batches", 0),
            seed=self.seed,
            epoch=lambda: self.trainer.current_epoch if self.trainer else 0,
            rank=rank,
            world_size=world_size,
            num_workers=self.num_workers,
            replays=module.num_policy_iterations(phase) if module and not warmup else 1,
            window=1 if warmup else self.accumulation(phase),
            labelled=self.labelled() if beside else (),
            labelled_per_batch=beside,
        )

    def _eval_loader(self, rows: Sequence[Transition]) -> TransitionLoader:
        rank, world_size = self._place()
        return TransitionLoader(
            rows,
            batch_size=self.eval_batch_size,
            train=False,
            rank=rank,
            world_size=world_size,
            num_workers=self.num_workers,
        )

    def _place(self) -> tuple[int, int]:
        """Return the rank of this process, and the number of processes."""
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)


def _epoch_of(phase: PhaseName) -> str:
    return f"an epoch of the phase {str(phase)!r}"
