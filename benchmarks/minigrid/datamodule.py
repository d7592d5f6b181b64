"""The MiniGrid benchmark as a LightningDataModule."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torchmetrics import MetricCollection

from swirl_lightning.benchmarks.minigrid.metrics import EffectAccuracy, ExactFrameMatch, Preservation
from swirl_lightning.benchmarks.minigrid.simulator import FAMILIES, check, generate
from swirl_lightning.data.module import Split, TransitionDataModule
from swirl_lightning.transition import Transition


class MiniGrid(TransitionDataModule):
    """Frames of 6 x 6 cells from the MiniGrid simulator, actions such as ``pick up the red key``.

    Nothing is downloaded: transitions are simulated when a split is first used, one or two milliseconds
    each. Layouts of the validation and test splits are in no other split.

    Args:
        warmup_size: labelled transitions for the warm-up.
        state_only_size: pairs without actions for Phases I and II.
        validation_size: transitions to validate on.
        test_size: transitions to test on.
        families: environment families, a choice of the keys of `FAMILIES`; null for all.
        max_gap: most steps between the two frames of a state-only pair, as in a video; labelled transitions are
            single steps whatever it is.
        world_seed: of the simulated episodes. Apart from `seed`, so that runs with different seeds can
            be compared on the same data.
        kwargs: as for `TransitionDataModule`.

    Raises:
        ImportError: at setup, if the simulator is not installed.
        ValueError: at setup, for an unknown family, a negative size or a `max_gap` below 1.
    """

    def __init__(
        self,
        *,
        warmup_size: int = 1000,
        state_only_size: int = 2000,
        validation_size: int = 200,
        test_size: int = 500,
        families: list[str] | None = None,
        max_gap: int = 1,
        world_seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.sizes = {
            "warmup": warmup_size,
            "state_only": state_only_size,
            "validation": validation_size,
            "test": test_size,
        }
        self.families = list(FAMILIES) if families is None else families
        self.gaps = {split: max_gap if split == "state_only" else 1 for split in self.sizes}
        self.world_seed = world_seed

    def check(self) -> None:
        """Checks that the simulator is installed, and families and sizes."""
        for split, size in self.sizes.items():
            check(split, size, self.families, self.gaps[split])

    def load_split(self, split: Split) -> Sequence[Transition]:
        """Simulates the split."""
        return generate(
            split, self.sizes[split], seed=self.world_seed, families=self.families, max_gap=self.gaps[split]
        )

    def state_metrics(self) -> MetricCollection:
        """Effect accuracy, preservation and exact match of predicted frames."""
        # Groups are formed by equal counts in the first batch, which can be a coincidence.
        return MetricCollection(
            {
                "effect_accuracy": EffectAccuracy(),
                "preservation": Preservation(),
                "exact_match": ExactFrameMatch(),
            },
            compute_groups=False,
        )
