"""GEdit-Bench (Step1X-Edit, arXiv 2504.17761): edits that users asked for; stepfun-ai/GEdit-Bench on the hub, MIT."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from torchmetrics import Metric, MetricCollection

from swirl_lightning.benchmarks.gedit.metrics import TASK_TYPES, GEditScore
from swirl_lightning.benchmarks.image_suite import ImageSuite
from swirl_lightning.benchmarks.image_tables import image_bytes, rows
from swirl_lightning.data.lazy import LazyRecord
from swirl_lightning.data.module import Split
from swirl_lightning.data.reading import BrokenRecord, SkippedRecords, text_field
from swirl_lightning.judge import Judge

COLUMNS = ("task_type", "key", "instruction", "instruction_language", "input_image", "Intersection_exist")
LANGUAGES = ("en", "cn")


class GEdit(ImageSuite):
    """GEdit-Bench: 606 images with an instruction each, in English and in Chinese, of 11 types of edit.

    Layout of ``data_dir``, as on the hub: ``*.arrow`` or ``*.parquet`` files, in it or in ``data/`` or ``train/`` (the
    name of its only split). There are no edited images to compare with: all scores come from the judge, and the
    IDM has nothing to read. The suite has no training data: warm up on another one, then ``swirl test`` here with
    its checkpoint. The images stay in memory as they are stored in the file, compressed.

    The benchmark's numbers are means over the means of the types: ``judge/semantics/mean over types`` (G_SC),
    ``judge/quality/mean over types`` (G_PQ) and ``judge/overall/mean over types`` (G_O); those of the official
    "intersection subset", which all models of its paper answered, end in ``/intersection/mean over types``.

    Args:
        data_dir: see above.
        language: of the instructions, ``en`` or ``cn``.
        task_types: types of edit to test; null for all.
        kwargs: as for `ImageSuite` (strict, clip, judge, limit) and `TransitionDataModule`.

    Raises:
        ValueError: an unknown language or type.
    """

    suite = "GEdit"
    source = (
        "Get GEdit-Bench from https://huggingface.co/datasets/stepfun-ai/GEdit-Bench and set data_dir to the folder "
        "with its files."
    )
    judge_template = "gedit"
    category_key = "groups"
    test_only = True

    def __init__(
        self,
        *,
        data_dir: str,
        language: Literal["en", "cn"] = "en",
        task_types: Sequence[str] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(data_dir=data_dir, **kwargs)
        if language not in LANGUAGES:
            raise ValueError(f"language must be one of {', '.join(LANGUAGES)}, got {language!r}")
        if unknown := sorted(set(task_types or ()) - set(TASK_TYPES)):
            raise ValueError(f"unknown task types {', '.join(unknown)}; choose from {', '.join(TASK_TYPES)}")
        self.language, self.task_types = language, task_types

    @property
    def judge_templates(self) -> dict[str, str]:
        """Two questions about the state, none about an action."""
        return {"state": self.judge_template, "quality": "quality"}

    @property
    def categories(self) -> tuple[str, ...]:
        """Types of edit, of all rows and of the intersection subset."""
        types = self._types
        return (*types, *(f"intersection/{kind}" for kind in types))

    @property
    def averages(self) -> Mapping[str, Sequence[str]]:
        """Means over the means of the types: the benchmark's numbers."""
        part = [f"intersection/{kind}" for kind in self._types]
        return {"mean over types": self._types, "intersection/mean over types": part}

    @property
    def _types(self) -> tuple[str, ...]:
        return TASK_TYPES if self.task_types is None else tuple(self.task_types)

    # ---- records ---------------------------------------------------------------------------------
    def read_records(self, split: Split, skipped: SkippedRecords) -> list[LazyRecord]:
        """Read the rows of the chosen language and types."""
        folders = (self.data_dir, self.data_dir / "data", self.data_dir / "train")
        paths = sorted(p for folder in folders for p in (*folder.glob("*.arrow"), *folder.glob("*.parquet")))
        if not paths:
            where = f"{self.data_dir}, its data/ or train/"
            raise FileNotFoundError(f"GEdit: no *.arrow or *.parquet in {where}. {self.source}")
        found = []
        for path in paths:
            for place, row in rows(path, COLUMNS, (), skipped):
                try:
                    record = self._record(row)
                except BrokenRecord as error:
                    skipped.add(place, error)
                else:
                    found += [] if record is None else [record]
        return found

    def _record(self, row: dict[str, Any]) -> LazyRecord | None:
        """Parse a row; None for one of another language or type.

        Raises:
            BrokenRecord: it cannot be used.
        """
        kind, language = text_field(row, "task_type"), text_field(row, "instruction_language")
        if kind not in TASK_TYPES:
            raise BrokenRecord(f"unknown task_type ({kind!r})")
        if language not in LANGUAGES:
            raise BrokenRecord(f"unknown instruction_language ({language!r})")
        if language != self.language or kind not in self._types:
            return None
        image = image_bytes(row["input_image"])
        if image is None:
            raise BrokenRecord("no input_image")
        if not isinstance(row["Intersection_exist"], bool):  # the text "False" would count as true
            raise BrokenRecord(f"Intersection_exist is {row['Intersection_exist']!r}, and not true or false")
        groups = [kind, f"intersection/{kind}"] if row["Intersection_exist"] else [kind]
        name = f"{kind}/{language}/{text_field(row, 'key')}"
        return LazyRecord(image, None, text_field(row, "instruction").strip(), name, {"task": kind, "groups": groups})

    # ---- metrics ---------------------------------------------------------------------------------
    def _look_for_missing(self) -> dict[str, str]:
        """Find the missing metrics; there are none of actions, and CLIP is no part of the benchmark."""
        found = super()._look_for_missing()
        return {name: cure for name, cure in found.items() if name == "judge" or (name == "clip" and self.clip)}

    def _judge_score(self, judge: Judge, template: str) -> Metric:
        return GEditScore(judge, self.categories, self.category_key, averages=self.averages)

    def action_metrics(self) -> MetricCollection:
        """Make none: there is no state after, from which an action could be told."""
        return MetricCollection({})
