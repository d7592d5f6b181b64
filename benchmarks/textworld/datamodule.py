"""The TextWorld benchmark as a LightningDataModule."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torchmetrics import Metric, MetricCollection

from swirl_lightning.benchmarks.shares import check_shares
from swirl_lightning.benchmarks.textworld.commands import commands
from swirl_lightning.benchmarks.textworld.dataset import SPLITS, ensure, game_seeds, load
from swirl_lightning.benchmarks.textworld.facts import read
from swirl_lightning.benchmarks.textworld.games import KINDS, World
from swirl_lightning.benchmarks.textworld.metrics import EffectAccuracy, ExactStateMatch, Hallucination, Preservation
from swirl_lightning.data.module import Split, TransitionDataModule
from swirl_lightning.engine.ranges import check_ranges
from swirl_lightning.metrics.embedding import EmbeddingSimilarity, missing_encoder
from swirl_lightning.metrics.text import RougeL
from swirl_lightning.transition import Transition


class TextWorld(TransitionDataModule):
    """Steps of text adventures (Côté et al. 2018, microsoft/TextWorld, MIT); a state is what the player sees and holds.

    Games are made from seeds, different ones for every split, and kept in ``data_dir``. A second start with the same
    settings reads them and needs no engine. Every step changes what is seen; commands that the game refuses,
    and those that only look, are left out.

    Args:
        data_dir: folder of the data, filled at the first start.
        warmup_size: labelled transitions for the warm-up.
        state_only_size: pairs without actions for Phases I and II.
        validation_size: transitions to validate on.
        test_size: transitions to test on.
        max_gap: the most steps between the two states of a pair; its distance is drawn evenly. Everything else is
            single steps.
        rooms: of a game.
        objects: of a game, besides rooms and doors; a quest that needs more has more.
        quest_length: actions of the shortest way to win.
        steps: actions played in a game, fewer if it is won before.
        on_path: chance of a step to follow the shortest way to win; the others are random.
        moves: chance of a random step to go to another room.
        world_seed: of the games. Apart from `seed`, so that runs with different seeds can be compared on the same
            data.
        action_shares: proportions of the kinds of action (``drop: 0.4``), in all splits; null for those of the play.
        labelled_action_shares: the same for the labelled transitions alone; null for ``action_shares``.
        state_only_action_shares: the same for the state-only pairs alone; null for ``action_shares``. Of pairs more
            than one step apart the first step counts, and no other one is of a kind that is left out.
        per_kind: report the metrics of states for each kind of action, too.
        embedding: encoder of `EmbeddingSimilarity`, for example all-MiniLM-L6-v2; None leaves that metric out.
        kwargs: as for `TransitionDataModule`.

    Raises:
        ImportError: before the model loads, if data must be made and the engine is not installed, or if the encoder
            of ``embedding`` is missing.
        ValueError: before the model loads, for a size, gap, seed, share or chance out of range.
    """

    def __init__(
        self,
        data_dir: str = "data/textworld",
        *,
        warmup_size: int = 400,
        state_only_size: int = 2000,
        validation_size: int = 200,
        test_size: int = 500,
        max_gap: int = 1,
        rooms: int = World.rooms,
        objects: int = World.objects,
        quest_length: int = World.quest_length,
        steps: int = World.steps,
        on_path: float = World.on_path,
        moves: float = World.moves,
        world_seed: int = 0,
        action_shares: dict[str, float] | None = None,
        labelled_action_shares: dict[str, float] | None = None,
        state_only_action_shares: dict[str, float] | None = None,
        per_kind: bool = False,
        embedding: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.data_dir = Path(data_dir)
        self.warmup_size, self.state_only_size = warmup_size, state_only_size
        self.validation_size, self.test_size = validation_size, test_size
        self.max_gap, self.world_seed, self.per_kind = max_gap, world_seed, per_kind
        self.embedding = embedding
        self.rooms, self.objects, self.quest_length, self.steps = rooms, objects, quest_length, steps
        self.on_path, self.moves = on_path, moves
        own = {"warmup": labelled_action_shares, "state_only": state_only_action_shares}
        self.shares = {split: action_shares if own.get(split) is None else own[split] for split in SPLITS}

    def prepare_data(self) -> None:
        """Generate the missing splits of the command, once per machine."""
        self.check()
        command = str(self.trainer.state.fn.value) if self.trainer and self.trainer.state.fn else "fit"
        for split in self.splits_needed(command):
            if getattr(self, f"{split}_size"):
                self._ensure(split)

    def check(self) -> None:
        """Check sizes, shares, probabilities and the encoder."""
        if self.embedding is not None and (reason := missing_encoder(self.embedding)) is not None:
            raise ImportError(f"data.embedding {self.embedding!r}: {reason}")
        World(self.rooms, self.objects, self.quest_length, self.steps, self.on_path, self.moves)
        game_seeds("test", self.world_seed)
        for shares in self.shares.values():
            if shares is not None:
                check_shares("TextWorld", shares, KINDS)
        sizes = {f"{split}_size": "whole [0, 10000000]" for split in SPLITS}
        check_ranges("data", vars(self), max_gap="whole [1, inf)", **sizes)

    def load_split(self, split: Split) -> Sequence[Transition]:
        """Read the split; if it is missing, make it first."""
        return load(self._ensure(split)) if getattr(self, f"{split}_size") else []

    def state_metrics(self) -> MetricCollection:
        """Make effect accuracy, preservation, hallucination and exact match of facts; ROUGE-L, similarity."""
        kinds = KINDS if self.per_kind else ()
        groups: dict[str, Any] = (
            {"group_by": "kind", "categories": {kind: kind for kind in KINDS}} if self.per_kind else {}
        )
        metrics: dict[str, Metric | MetricCollection] = {
            "effect_accuracy": EffectAccuracy(kinds),
            "preservation": Preservation(kinds),
            "hallucination": Hallucination(kinds),
            "exact_match": ExactStateMatch(kinds),
            "rouge_l": RougeL(**groups),
        }
        if self.embedding is not None:
            metrics["embedding_similarity"] = EmbeddingSimilarity(self.embedding, **groups)
        return MetricCollection(metrics, compute_groups=False)

    def possible_actions(self, state: str) -> list[str]:
        """Return the commands whose outcome is decided by what a state shows."""
        return commands(read(state)[0])

    def _ensure(self, split: str) -> Path:
        world = World(self.rooms, self.objects, self.quest_length, self.steps, self.on_path, self.moves)
        return ensure(
            self.data_dir,
            split,
            getattr(self, f"{split}_size"),
            world,
            world_seed=self.world_seed,
            max_gap=self.max_gap,
            shares=self.shares[split],
        )
