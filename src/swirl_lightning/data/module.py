"""The DataModule that all benchmarks share: which transitions each phase may see."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal

import numpy as np
from lightning import LightningDataModule
from torchmetrics import MetricCollection

from swirl_lightning.data.loader import TransitionLoader
from swirl_lightning.data.reading import first
from swirl_lightning.metrics.exact_match import ExactMatch
from swirl_lightning.transition import Transition

Split = Literal["warmup", "state_only", "validation", "test"]


class TransitionDataModule(LightningDataModule, ABC):
    """Loaders for the phases of SWIRL; a benchmark adds :meth:`load_split` and its metrics.

    Training gives the labelled split in the warm-up and the state-only split afterwards, with every action
    taken away. The Trainer must reload its loaders in every epoch (``PhaseSwitch`` sees to it).

    Args:
        batch_size: transitions per training batch and device.
        warmup_batch_size: the same in the warm-up; None for ``batch_size``.
        eval_batch_size: the same for validation, test and prediction; None for ``batch_size``.
        num_workers: worker processes that load records; 0 loads in the main process.
        seed: of the order of rows and of the choice of pairs.
        pairs_per_iteration: state-only pairs of one iteration, shown in both of its phases. Iteration i has
            pairs i*n to (i+1)*n of a shuffled order, which wraps around. None shows all in every iteration.

    Example::

        class MyData(TransitionDataModule):
            def load_split(self, split):
                return [Transition(x, y, z, id=f"{split}-{i}") for i, (x, z, y) in enumerate(read(split))]
    """

    def __init__(
        self,
        *,
        batch_size: int = 8,
        warmup_batch_size: int | None = None,
        eval_batch_size: int | None = None,
        num_workers: int = 0,
        seed: int = 0,
        pairs_per_iteration: int | None = None,
    ) -> None:
        super().__init__()
        if pairs_per_iteration is not None and pairs_per_iteration < 1:
            raise ValueError(f"pairs_per_iteration must be at least 1 or null, got {pairs_per_iteration}")
        self.batch_size = batch_size
        self.warmup_batch_size = warmup_batch_size or batch_size
        self.eval_batch_size = eval_batch_size or batch_size
        self.num_workers = num_workers
        self.seed = seed
        self.pairs_per_iteration = pairs_per_iteration
        self._splits: dict[str, Sequence[Transition]] = {}

    # ---- what a benchmark says -------------------------------------------------------------------
    @abstractmethod
    def load_split(self, split: Split) -> Sequence[Transition]:
        """The records of a split; called once. Everything but ``state_only`` has actions.

        Any sequence will do: one that reads records when they are accessed keeps memory low, and is then
        read by ``num_workers`` processes.
        """

    def check(self) -> None:
        """Cheap checks (files exist, options agree); runs on every device before any model loads."""

    def state_metrics(self) -> MetricCollection:
        """Metrics of the FWM, called as ``update(predicted_states, transitions)``."""
        return MetricCollection({"exact_match": ExactMatch("after")})

    def action_metrics(self) -> MetricCollection:
        """Metrics of the IDM, called as ``update(predicted_actions, transitions)``."""
        return MetricCollection({"exact_match": ExactMatch("action")})

    # ---- Lightning's hooks -----------------------------------------------------------------------
    def setup(self, stage: str) -> None:
        """Runs :meth:`check`."""
        self.check()

    def train_dataloader(self) -> TransitionLoader:
        """The labelled split in the warm-up, the iteration's state-only pairs in other phases."""
        module = getattr(self.trainer, "lightning_module", None)
        phase = getattr(module, "phase", None)
        if module is None or phase is None or phase.name == "warmup":
            return self._train_loader(self.split("warmup"), self.warmup_batch_size)
        return self._train_loader(
            self.pairs(phase.iteration),
            self.batch_size,
            replays=module.num_policy_iterations(phase.name),
            window=self.trainer.accumulate_grad_batches if self.trainer else 1,
        )

    def val_dataloader(self) -> TransitionLoader:
        """The validation split."""
        return self._eval_loader(self.split("validation"))

    def test_dataloader(self) -> TransitionLoader:
        """The test split."""
        return self._eval_loader(self.split("test"))

    def predict_dataloader(self) -> TransitionLoader:
        """What :meth:`predict_rows` gives."""
        return self._eval_loader(self.predict_rows())

    # ---- splits ----------------------------------------------------------------------------------
    def predict_rows(self) -> Sequence[Transition]:
        """What ``swirl predict`` asks the models about: the test split, unless a subclass has more to ask."""
        return self.split("test")

    def split(self, name: Split) -> Sequence[Transition]:
        """A split, loaded at the first call.

        Raises:
            ValueError: it is empty, or records that are there to train on lack the state after.
        """
        if name not in self._splits:
            rows = self.load_split(name)
            if len(rows) == 0:
                cure = "; to train without it set trainer.limit_val_batches to 0" if name == "validation" else ""
                raise ValueError(f"{type(self).__name__}: the split {name!r} is empty{cure}")
            bare = [row.id for row in rows if row.after is None] if isinstance(rows, list) else []  # others are lazy
            if bare and name in ("warmup", "state_only"):
                told = f"{len(bare)} of {len(rows)} records of the split {name!r} have no state after"
                raise ValueError(f"{type(self).__name__}: {told}, and training needs one:{first(bare)}")
            self._splits[name] = rows
        return self._splits[name]

    def pairs(self, iteration: int) -> Sequence[Transition]:
        """The state-only pairs of an iteration (0-based), without their actions."""
        rows = self.split("state_only")
        chosen = np.arange(len(rows))
        if self.pairs_per_iteration is not None:
            count = min(self.pairs_per_iteration, len(rows))  # no pair twice within an iteration
            shuffled = np.random.default_rng(self.seed).permutation(len(rows))
            chosen = shuffled[(iteration * count + np.arange(count)) % len(rows)]
        return _StateOnly(rows, chosen.tolist())

    # ---- loaders ---------------------------------------------------------------------------------
    def _train_loader(
        self, rows: Sequence[Transition], batch_size: int, replays: int = 1, window: int = 1
    ) -> TransitionLoader:
        rank, world_size = self._place()
        return TransitionLoader(
            rows,
            batch_size=batch_size,
            shuffle=not getattr(self.trainer, "overfit_batches", 0),
            seed=self.seed,
            epoch=lambda: self.trainer.current_epoch if self.trainer else 0,
            rank=rank,
            world_size=world_size,
            num_workers=self.num_workers,
            replays=replays,
            window=window,
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
        """This process's rank, and the number of processes."""
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)


class _StateOnly(Sequence[Transition]):
    """Chosen rows of a split, their actions taken away."""

    def __init__(self, rows: Sequence[Transition], chosen: list[int]) -> None:
        self._rows = rows
        self._chosen = chosen

    def __len__(self) -> int:
        return len(self._chosen)

    def __getitem__(self, index: int) -> Transition:  # type: ignore[override]
        return self._rows[self._chosen[index]].without_action()
