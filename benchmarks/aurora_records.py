"""Records of AURORA's index files, ``test.json`` and ``data/<task>/train.json`` (McGill-NLP/AURORA on GitHub, MIT).

Beside the suite's package, and not in it: what makes training data of the corpus starts without torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from swirl_lightning.data.lazy import LazyRecord
from swirl_lightning.data.reading import SkippedRecords, stays_inside

TRAIN_TASKS = ("magicbrush", "ag", "something", "kubric")
OUTSIDE = "an image outside AURORA's folder"


def train_files(folder: Path) -> dict[str, Path]:
    """Return the training sets that are there, by task.

    Raises:
        FileNotFoundError: none is.
    """
    paths = {task: folder / "data" / task / "train.json" for task in TRAIN_TASKS}
    if found := {task: path for task, path in paths.items() if path.is_file()}:
        return found
    raise FileNotFoundError(
        f"AURORA: no data/<task>/train.json in {folder} for {', '.join(TRAIN_TASKS)}. Get them from "
        "https://github.com/McGill-NLP/AURORA, and the training images from Hugging Face: McGill-NLP/AURORA"
    )


def edits(
    entry: Mapping[str, Any], folder: Path, name: str, meta: dict[str, Any], skipped: SkippedRecords, target: bool
) -> list[LazyRecord]:
    """Parse ``{instruction, input, output}``; a broken entry gives none, and goes to ``skipped``.

    Args:
        entry: of an index file.
        folder: AURORA's, to which images are relative.
        name: becomes the record's id.
        meta: the record's.
        skipped: gets broken entries.
        target: the image of the result must be named.
    """
    before, after, words = entry.get("input"), entry.get("output"), words_of(entry)
    if not words:
        problem = "no instruction"
    elif not isinstance(before, str) or not before:
        problem = "no input image"
    elif not isinstance(after, str) and (target or after is not None):
        problem = "no output image"
    elif outside := [image for image in (before, after) if image is not None and not stays_inside(image)]:
        problem = f"{OUTSIDE} ({outside[0]})"
    else:
        return [LazyRecord(folder / before, None if after is None else folder / after, words, name, meta)]
    skipped.add(name, problem)
    return []


def words_of(entry: Mapping[str, Any]) -> str:
    """Return the instruction, which earlier versions of the files call ``prompt``."""
    return first_text(entry.get("instruction")) or first_text(entry.get("prompt"))


def first_text(value: Any) -> str:
    """Return an instruction in words; of several wordings the first, so that runs can be compared."""
    first = value[0] if isinstance(value, list) and value else value
    return first.strip() if isinstance(first, str) else ""


def clip_of(record: LazyRecord) -> str:
    """Name what a record's images are of.

    In the training sets many pairs are of one video, ``CLIP.mp4_N_...``, or of one photograph, ``img_id``.
    """
    if photograph := record.meta.get("img_id"):
        return f"photograph {photograph}"
    before = record.before if isinstance(record.before, Path) else Path(record.id)
    clip, ending, _ = before.name.partition(".mp4_")
    return str(before.with_name(clip)) if ending else str(before)
