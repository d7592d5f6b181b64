"""ByteMorph-Bench (arXiv 2506.03107): edits that are motion; ByteDance-Seed/BM-Bench on the hub, CC0."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torchmetrics import Metric

from swirl_lightning.benchmarks.bytemorph.metrics import EDIT_TYPES, ByteMorphDirections
from swirl_lightning.benchmarks.image_suite import ImageSuite
from swirl_lightning.benchmarks.image_tables import image_bytes, rows
from swirl_lightning.data.lazy import LazyRecord
from swirl_lightning.data.module import Split
from swirl_lightning.data.reading import BrokenRecord, SkippedRecords
from swirl_lightning.metrics.clip import CLIPEncoder, CLIPSimilarity

COLUMNS = ("edit_type", "image_id", "src_img", "tgt_img", "edit_prompt")
OPTIONAL = ("edit_prompt_rewrite_instruction", "src_img_caption", "tgt_img_caption")


class ByteMorph(ImageSuite):
    """ByteMorph-Bench: a parquet file of image pairs with an edit prompt and captions of both.

    Layout of ``data_dir``, as on the hub: one or more ``*.parquet`` files, in it or in ``data/``. The suite
    has no training data: warm up on another one, then ``swirl test`` here with its checkpoint. The images
    stay in memory as they are stored in the file, compressed.

    Args:
        data_dir: see above.
        edit_types: categories to test; null for all.
        rewritten: use the prompts rewritten as instructions.
        kwargs: as for `ImageSuite` (strict, clip, judge, limit) and `TransitionDataModule`.

    Raises:
        ValueError: an unknown category.
    """

    suite = "ByteMorph"
    source = (
        "Get ByteMorph-Bench from https://huggingface.co/datasets/ByteDance-Seed/BM-Bench and set data_dir to "
        "the folder with its parquet file."
    )
    judge_template = "bytemorph"
    category_key = "edit_type"
    test_only = True

    def __init__(
        self,
        *,
        data_dir: str,
        edit_types: Sequence[str] | None = None,
        rewritten: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(data_dir=data_dir, **kwargs)
        unknown = sorted(set(edit_types or ()) - set(EDIT_TYPES))
        if unknown:
            raise ValueError(f"unknown edit types {', '.join(unknown)}; choose from {', '.join(EDIT_TYPES)}")
        self.edit_types, self.rewritten = edit_types, rewritten

    @property
    def categories(self) -> tuple[str, ...]:
        """Names of the edit types."""
        return EDIT_TYPES if self.edit_types is None else tuple(self.edit_types)

    def read_records(self, split: Split, skipped: SkippedRecords) -> list[LazyRecord]:
        """Read the rows of the parquet files."""
        paths = sorted(p for folder in (self.data_dir, self.data_dir / "data") for p in folder.glob("*.parquet"))
        if not paths:
            raise FileNotFoundError(f"ByteMorph: no *.parquet in {self.data_dir} or its data/. {self.source}")
        records = []
        for path in paths:
            for place, row in rows(path, COLUMNS, OPTIONAL, skipped):
                if row["edit_type"] in self.categories:
                    name = f"{place} {row['edit_type']}/{row['image_id']}"
                    try:
                        records.append(self._record(row, name))
                    except BrokenRecord as error:
                        skipped.add(name, error)
                elif row["edit_type"] not in EDIT_TYPES:
                    skipped.add(place, f"unknown edit type ({row['edit_type']!r})")
        return records

    def _record(self, row: dict[str, Any], name: str) -> LazyRecord:
        """Parse a row; raise BrokenRecord if it cannot be used."""
        prompt = row.get("edit_prompt_rewrite_instruction") if self.rewritten else None
        words = prompt or row["edit_prompt"]
        before, after = image_bytes(row["src_img"]), image_bytes(row["tgt_img"])
        if not isinstance(words, str) or not words.strip():
            raise BrokenRecord("no edit prompt")
        if row["image_id"] is None:
            raise BrokenRecord("no image_id")
        if before is None or after is None:
            raise BrokenRecord("missing")
        meta = {"edit_type": row["edit_type"], "image_id": str(row["image_id"])}
        for key, column in (("src_caption", "src_img_caption"), ("tgt_caption", "tgt_img_caption")):
            if row.get(column):
                meta[key] = row[column]
        return LazyRecord(before, after, words.strip(), name, meta)

    def clip_metrics(self, encoder: CLIPEncoder) -> dict[str, Metric]:
        """Make the four official scores, and the similarities of AURORA."""
        return {
            "bytemorph": ByteMorphDirections(encoder, self.categories),
            "clip": CLIPSimilarity(encoder, self.categories, self.category_key),
        }
