"""The MiniGrid benchmark as a LightningDataModule."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torchmetrics import MetricCollection

from swirl_lightning.benchmarks.minigrid.metrics import EffectAccuracy, ExactFrameMatch, Preservation
from swirl_lightning.benchmarks.minigrid.simulator import FAMILIES, check, generate
from swirl_lightning.benchmarks.minigrid.tiles import GRID, TILE
from swirl_lightning.benchmarks.minigrid.world import MiniGridSimulator
from swirl_lightning.data.module import Split, TransitionDataModule
from swirl_lightning.engine.ranges import check_ranges
from swirl_lightning.transition import Transition


class MiniGrid(TransitionDataModule):
    """Frames of MiniGrid's simulator, cells of 8 x 8 pixels, actions such as ``pick up the red key``.

    Nothing is downloaded: transitions are simulated when a split is first used, one or two milliseconds
    each. Layouts of the validation and test splits are in no other split.

    Args:
        warmup_size: labelled transitions for the warm-up.
        state_only_size: pairs without actions for Phases I and II.
        validation_size: transitions to validate on.
        test_size: transitions to test on.
        families: environment families, a choice of the keys of `FAMILIES`; null for all.
        labelled_families: the same for the labelled transitions alone; null for ``families``.
        never_labelled: things such as ``red key`` that no labelled transition names.
        action_shares: proportions of the kinds of action (``drop: 0.4``), in all splits; null takes `SHARES`.
        labelled_action_shares: the same for the labelled transitions alone; null for ``action_shares``.
        state_only_action_shares: the same for the state-only pairs alone; null for ``action_shares``. Of pairs more
            than a step apart it counts the first step.
        min_gap: fewest steps between the two frames of a state-only pair.
        max_gap: most steps between them, as in a video; labelled transitions are single steps whatever it is.
        grid: cells along a side of a frame. The base must have been made for frames of this size: the shipped one
            for 6, and ``python -m recipes.tiny_liquid --grid 8`` makes one for 8.
        moving_balls: balls that each scene has beside its other things. In state-only pairs each moves by itself
            after every step, as the obstacles of MiniGrid's DynamicObstacles, so that no action explains the second
            frame. In the other splits, which show what an action does, they lie still.
        world_seed: of the simulated episodes. Apart from `seed`, so that runs with different seeds can
            be compared on the same data.
        kwargs: as for `TransitionDataModule`.

    Raises:
        ImportError: at setup, if the simulator is not installed.
        ValueError: at setup, for an unknown family, kind of action or thing, a negative size or gaps below 1, and
            for a base that was made for frames of another grid.
    """

    def __init__(
        self,
        *,
        warmup_size: int = 1000,
        state_only_size: int = 2000,
        validation_size: int = 200,
        test_size: int = 500,
        families: list[str] | None = None,
        labelled_families: list[str] | None = None,
        never_labelled: tuple[str, ...] = (),
        action_shares: dict[str, float] | None = None,
        labelled_action_shares: dict[str, float] | None = None,
        state_only_action_shares: dict[str, float] | None = None,
        min_gap: int = 1,
        max_gap: int = 1,
        grid: int = GRID,
        moving_balls: int = 0,
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
        everywhere: dict[str, Any] = {
            "families": tuple(FAMILIES if families is None else families),
            "grid": grid,
            "balls": moving_balls,
        }
        if action_shares is not None:
            everywhere["shares"] = action_shares
        shown: dict[str, Any] = {} if state_only_action_shares is None else {"shares": state_only_action_shares}
        labelled: dict[str, Any] = {} if labelled_families is None else {"families": tuple(labelled_families)}
        if labelled_action_shares is not None:
            labelled["shares"] = labelled_action_shares
        self.options: dict[str, dict[str, Any]] = {
            "warmup": {**everywhere, **labelled, "never_named": tuple(never_labelled)},
            "state_only": {**everywhere, **shown, "min_gap": min_gap, "max_gap": max_gap},
            "validation": everywhere,
            "test": everywhere,
        }
        self.world_seed = world_seed

    def check(self) -> None:
        """Check that the simulator is installed, every option of every split, and that the base knows such frames."""
        check_ranges("data", vars(self), world_seed="whole [0, inf)")
        for split, size in self.sizes.items():
            check(split, size, **self.options[split])
        backbone = getattr(getattr(self.trainer, "lightning_module", None), "backbone", None)
        codes, grid = getattr(backbone, "vqgan_config", None), self.options["test"]["grid"]
        if codes and codes.downsample == TILE and codes.grid != grid:  # a code is a cell, so no other size can be read
            raise ValueError(
                f"data.grid {grid} does not fit the base, which was made for frames of {codes.grid} x {codes.grid} "
                f"cells: set data.grid to {codes.grid}, or model.backbone.model_name_or_path to a base "
                f"that `python -m recipes.tiny_liquid --grid {grid}` makes"
            )

    def load_split(self, split: Split) -> Sequence[Transition]:
        """Simulate the split."""
        moving = split == "state_only"
        return generate(split, self.sizes[split], seed=self.world_seed, moving=moving, **self.options[split])

    def state_metrics(self) -> MetricCollection:
        """Make effect accuracy, preservation and exact match of predicted frames."""
        # Groups are formed by equal counts in the first batch, which can be a coincidence.
        return MetricCollection(
            {
                "effect_accuracy": EffectAccuracy(),
                "preservation": Preservation(),
                "exact_match": ExactFrameMatch(),
            },
            compute_groups=False,
        )

    def simulator(self) -> MiniGridSimulator:
        """Return MiniGrid, which starts from a frame."""
        return MiniGridSimulator()
