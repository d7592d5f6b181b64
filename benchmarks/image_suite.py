"""Base of the suites with image states: checks before the model loads, CLIP scores and judge."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torchmetrics import Metric, MetricCollection

from swirl_lightning.benchmarks.suite import Suite
from swirl_lightning.data.lazy import LazyRecord, LazyTransitions, usable
from swirl_lightning.data.module import Split
from swirl_lightning.data.reading import SkippedRecords, first
from swirl_lightning.judge import Judge
from swirl_lightning.judge.metric import JudgeScore
from swirl_lightning.metrics.bert_score import BERTScore, missing_model
from swirl_lightning.metrics.clip import CLIPEncoder, CLIPSimilarity
from swirl_lightning.metrics.exact_match import ExactMatch
from swirl_lightning.metrics.text import BLEU, RougeL
from swirl_lightning.transition import Transition

DEFAULT_CLIP = "openai/clip-vit-base-patch32"


class ImageSuite(Suite):
    """Base of suites whose states are images on disk in the official layout.

    Every record of the splits that a command needs is read, and every image checked, before the model loads.
    Skipped records are counted in :attr:`counts` and reported, ten by name.

    Args:
        data_dir: folder in the official layout.
        clip: CLIP checkpoint for CLIP scores, a hub name or a folder. If it is null or cannot be loaded, these
            scores are left out, and :attr:`missing_metrics` names the reason; ``bert`` likewise.
        judge: LLM judge of ``swirl test``, or null.
        kwargs: as for `Suite` (strict, bert, limit) and `TransitionDataModule`.
    """

    judge_template = ""
    test_only = False
    """True if there is a test split alone: models are fitted on another benchmark."""
    keeps_without_target = False
    """True if a test record whose image of the result is missing is predicted and judged all the same."""

    def __init__(
        self,
        *,
        data_dir: str,
        clip: str | None = None,
        judge: Judge | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(data_dir, **kwargs)
        self.clip, self.judge = clip, judge
        self._checked: dict[str, list[LazyRecord]] = {}
        self._stage: str | None = None

    # ---- what a suite says -----------------------------------------------------------------------
    @abstractmethod
    def read_records(self, split: Split, skipped: SkippedRecords) -> list[LazyRecord]:
        """Read the records of a split, without opening images; broken ones go to ``skipped``."""

    @property
    def judge_templates(self) -> dict[str, str]:
        """Template by the subject of the question to the judge, see `Judge.template_of`."""
        return {"state": self.judge_template, "action": "action"}

    @property
    def categories(self) -> tuple[str, ...]:
        """Values of ``meta[self.category_key]`` that get means of their own."""
        return ()

    category_key = "task"

    @property
    def averages(self) -> Mapping[str, Sequence[str]]:
        """Name of each mean over means of categories -> those categories; see `CategoryMeans`."""
        return {}

    # ---- Lightning's hooks -----------------------------------------------------------------------
    def setup(self, stage: str) -> None:
        """Run :meth:`check`, and keep the stage: a judge is asked in some alone."""
        self._stage = stage
        super().setup(stage)

    def check(self) -> None:
        """Check that the folder is there, and for ``swirl test`` the judge's package and key.

        Raises:
            FileNotFoundError: the folder is not there.
        """
        if not self.data_dir.is_dir():
            raise FileNotFoundError(f"{self.suite}: no folder {self.data_dir}. {self.source}")
        if self.judge is not None and self._stage == "test":
            self.judge.check()

    def load_split(self, split: Split) -> Sequence[Transition]:
        """Return the usable records, opened one by one.

        Raises:
            FileNotFoundError: an index file is not there.
            ValueError: there is no such split; an index file cannot be read; or ``strict`` and something is wrong.
        """
        return LazyTransitions(self.checked(split))

    def checked(self, split: Split) -> list[LazyRecord]:
        """Return the usable records of a split, which are read and checked at the first call."""
        if split not in self._checked:
            if self.test_only and split != "test":
                raise ValueError(
                    f"{self.suite} has a test split only: fit on another benchmark (Aurora, for example), then run "
                    "swirl test here with --ckpt_path"
                )
            skipped = SkippedRecords(f"{self.suite} {split}")
            records = self.read_records(split, skipped)
            if split == "test" and self.limit is not None:
                records = records[: self.limit]
            kept = usable(records, skipped, self.keeps_without_target and split == "test" and not self.strict)
            skipped.report(len(kept), self.strict)
            self.counts[split] = skipped.counts(len(kept))
            given = {record.id for record in records if record.after is not None}
            if lost := [record.id for record in kept if record.after is None and record.id in given]:
                self.counts[split]["without target"] = len(lost)
                told = "the image of their result is missing, and scores that need it leave them out"
                rank_zero_warn(f"{self.suite} {split}: of {len(lost)} records {told}:{first(lost)}")
            self._checked[split] = kept
        return self._checked[split]

    # ---- metrics ---------------------------------------------------------------------------------
    def _look_for_missing(self) -> dict[str, str]:
        found = {
            "clip": missing_model(self.clip, "clip", DEFAULT_CLIP),
            "bert_score": missing_model(self.bert),
            "bleu_word": None if find_spec("nltk") else "pip install 'swirl-lightning[text]'",
            "judge": None if self.judge else "set judge",
        }
        return {name: cure for name, cure in found.items() if cure is not None}

    @property
    def _judging(self) -> bool:
        """True in ``swirl test`` and without a Trainer: a judge costs money."""
        return self._stage in ("test", None)

    def state_metrics(self) -> MetricCollection:
        """Make CLIP scores and judge, as configured."""
        metrics: dict[str, Metric | MetricCollection] = {}
        if self.clip and "clip" not in self._missing:
            metrics |= self.clip_metrics(CLIPEncoder(self.clip))
        if self.judge is not None and self._judging:
            metrics["judge"] = self._judge_score(self.judge, self.judge_template)
        return MetricCollection(metrics, compute_groups=False)

    def action_metrics(self) -> MetricCollection:
        """Make exact match, ROUGE-L and BLEU by words, and BERTScore and judge as configured."""
        groups: dict[str, Any] = {"field": "action"}
        if self.categories:
            groups |= {"group_by": self.category_key, "categories": {name: name for name in self.categories}}
        metrics: dict[str, Metric | MetricCollection] = {
            "exact_match": ExactMatch("action", self.categories, self.category_key),
            "rouge_l": RougeL(**groups),
        }
        if find_spec("nltk") is not None:
            metrics["bleu_word"] = BLEU("bleu_word", "word", **groups)
        if self.bert and "bert_score" not in self._missing:
            metrics["bert_score"] = BERTScore(self.bert, **groups)
        if self.judge is not None and self._judging:
            metrics["judge"] = self._judge_score(self.judge, "action")
        return MetricCollection(metrics, compute_groups=False)

    def _judge_score(self, judge: Judge, template: str) -> Metric:
        return JudgeScore(judge, template, self.categories, self.category_key, averages=self.averages)

    def clip_metrics(self, encoder: CLIPEncoder) -> dict[str, Metric]:
        """Make the similarity to target and source; a suite with scores of its own overrides this."""
        return {"clip": CLIPSimilarity(encoder, self.categories, self.category_key, averages=self.averages)}

    # ---- files -----------------------------------------------------------------------------------
    def require(self, path: Path) -> Path:
        """Return the path of an index file.

        Raises:
            FileNotFoundError: it is not there; the message says where to get it.
        """
        if not path.is_file():
            raise FileNotFoundError(f"{self.suite}: no file {path}. {self.source}")
        return path
