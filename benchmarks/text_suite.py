"""Base of the suites with text states: checks of files, halves of the episodes, and text metrics."""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from torchmetrics import Metric, MetricCollection

from swirl_lightning.benchmarks.suite import Suite
from swirl_lightning.data.module import Split
from swirl_lightning.data.reading import SkippedRecords, require_files
from swirl_lightning.data.splitting import halves, rank_of
from swirl_lightning.engine.ranges import check_ranges
from swirl_lightning.metrics.bert_score import BERTScore, missing_model
from swirl_lightning.metrics.embedding import EmbeddingSimilarity, missing_encoder
from swirl_lightning.metrics.exact_match import ExactMatch
from swirl_lightning.metrics.row_mean import RowMean
from swirl_lightning.metrics.text import BLEU, RougeL
from swirl_lightning.transition import Transition

Part = Literal["train", "validation", "test"]


class TextSuite(Suite):
    """Benchmark of textual states in a folder of its official layout.

    A subclass names the files that it needs (`files`) and reads them (`read`). The ``meta`` of every transition
    has the key ``episode``, and ``split`` if there are several test splits. Half of the training episodes are
    labelled, half are state-only. All that a command needs is read and checked in `setup`, before the model
    loads.

    Args:
        data_dir: the folder.
        split_seed: of the choice of labelled episodes. Apart from ``seed``, so that runs with different seeds
            can be compared on the same data.
        validation_episodes: training episodes kept for validation, where the suite has no validation split.
        limit: number of transitions of the test part, and of an official validation part, chosen by `spread`;
            :attr:`counts` has the number of the others. None for all.
        embedding: encoder of `EmbeddingSimilarity`, for example all-MiniLM-L6-v2; None leaves that metric out.
        kwargs: as for `Suite` (strict, bert) and `TransitionDataModule`.

    Raises:
        FileNotFoundError: at setup, with the number of missing files and the first ten.
        ValueError: at setup, for a broken record in strict mode, an unknown option or an empty split.
    """

    validation_is_official = True
    """True if `read` has a validation part; otherwise it is taken from the training episodes."""

    def __init__(
        self,
        data_dir: str,
        *,
        split_seed: int = 0,
        validation_episodes: int = 50,
        embedding: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(data_dir, **kwargs)
        self.embedding = embedding
        self.split_seed = split_seed
        self.validation_episodes = validation_episodes
        check_ranges("data", vars(self), validation_episodes="whole [0, inf)")
        self._parts: dict[str, list[Transition]] = {}

    # ---- what a suite says -----------------------------------------------------------------------
    @abstractmethod
    def files(self, part: Part) -> Sequence[Path]:
        """Return the files of a part."""

    @abstractmethod
    def read(self, part: Part) -> list[Transition]:
        """Read the labelled transitions of a part; called once."""

    def stratum(self, row: Transition) -> str:
        """Return the stratum of an episode: those of one stratum are halved together."""
        return ""

    def groups(self) -> dict[str, Any]:
        """Return the arguments of `RowMean` for means and categories; none by default."""
        return {}

    # ---- before the model loads ------------------------------------------------------------------
    def setup(self, stage: str) -> None:
        """Check files and options, and read the splits that the command needs."""
        parts = self._needed(stage)
        require_files(sorted({path for part in parts for path in self.files(part)}), self.source)
        super().setup(stage)

    def _needed(self, stage: str) -> list[Part]:
        parts: dict[Part, None] = {}
        for split in self.splits_needed(stage):
            official = split == "validation" and self.validation_is_official
            parts["test" if split == "test" else "validation" if official else "train"] = None
        return list(parts)

    # ---- splits ----------------------------------------------------------------------------------
    def load_split(self, split: Split) -> Sequence[Transition]:
        """Return a half of the training episodes, or at most ``limit`` transitions of an official split."""
        if split == "test" or (split == "validation" and self.validation_is_official):
            return self._limited("test" if split == "test" else "validation")
        rows = self._part("train")
        strata = {str(row.meta["episode"]): self.stratum(row) for row in rows}
        held: set[str] = set()
        if not self.validation_is_official:
            held = set(sorted(strata, key=lambda name: rank_of(name, self.split_seed))[: self.validation_episodes])
        labelled, unlabelled = halves(
            {name: stratum for name, stratum in strata.items() if name not in held}, self.split_seed
        )
        chosen = {"warmup": labelled, "state_only": unlabelled, "validation": held}[split]
        return [row for row in rows if row.meta["episode"] in chosen]

    def _part(self, part: Part) -> list[Transition]:
        if part not in self._parts:
            self._parts[part] = self.read(part)
        return self._parts[part]

    def _limited(self, part: Part) -> Sequence[Transition]:
        rows = self._part(part)
        kept = spread(rows, self.limit)
        if left_out := len(rows) - len(kept):
            counts = {"records": len(rows), **self.counts.get(part, {})}
            self.counts[part] = {**counts, "used": len(kept), "left out by limit": left_out}
        return kept

    def _count(self, part: str, skipped: SkippedRecords, used: int) -> None:
        """Keep and report the counts of a part."""
        skipped.report(used, self.strict)
        self.counts[part] = skipped.counts(used)

    # ---- metrics ---------------------------------------------------------------------------------
    def state_metric_makers(self) -> Mapping[str, Callable[..., RowMean]]:
        """Return makers of the FWM's metrics by name; each takes the arguments of `groups`."""
        makers: dict[str, Callable[..., RowMean]] = {
            "rouge_l": RougeL,
            "bleu_char": BLEU,
            "bleu_word": lambda **options: BLEU("bleu_word", "word", **options),
        }
        if (model := self.bert) is not None:
            makers["bert_score"] = lambda **options: BERTScore(model, **options)
        if (encoder := self.embedding) is not None:
            makers["embedding_similarity"] = lambda **options: EmbeddingSimilarity(encoder, **options)
        return makers

    def state_metrics(self) -> MetricCollection:
        """Make exact match, ROUGE-L, BLEU by characters and words; BERTScore and embedding similarity as configured."""
        metrics: dict[str, Metric | MetricCollection] = {"exact_match": ExactMatch("after")}
        for name, make in self.state_metric_makers().items():
            if name not in self._missing:
                metrics[name] = make(**self.groups())
        return MetricCollection(metrics, compute_groups=False)

    def action_metrics(self) -> MetricCollection:
        """Make exact match and ROUGE-L."""
        return MetricCollection(
            {"exact_match": ExactMatch("action"), "rouge_l": RougeL(field="action", **self.groups())},
            compute_groups=False,
        )

    def _look_for_missing(self) -> dict[str, str]:
        missing = {}
        if (reason := missing_model(self.bert)) is not None:
            missing["bert_score"] = reason
        if self.embedding is not None and (reason := missing_encoder(self.embedding)) is not None:
            missing["embedding_similarity"] = reason
        for name, make in self.state_metric_makers().items():
            if name not in ("bert_score", "embedding_similarity"):
                try:
                    make()
                except ImportError as error:
                    missing[name] = str(error)
        return missing


def spread(rows: Sequence[Transition], limit: int | None) -> Sequence[Transition]:
    """Choose ``limit`` transitions, always the same: one of each ``meta["split"]``, the rest in proportion to its size.

    Within a split they are at equal distances: files are in the order of tasks, and the first rows would cover
    a few tasks alone.
    """
    if limit is None or limit >= len(rows):
        return rows
    splits: dict[str, list[Transition]] = {}
    for row in rows:
        splits.setdefault(str(row.meta.get("split")), []).append(row)
    shares = sorted((place / len(found), name) for name, found in splits.items() for place in range(len(found)))
    counts = Counter(name for _, name in shares[:limit])
    return [
        found[place * len(found) // counts[name]] for name, found in splits.items() for place in range(counts[name])
    ]
