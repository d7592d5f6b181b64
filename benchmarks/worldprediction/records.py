"""JSON of WorldPrediction: samples, their segments, and the first index of their answers."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from swirl_lightning.data.reading import BrokenRecord, SkippedRecords, check_values, shallow, stays_inside


@dataclass(frozen=True)
class Segment:
    """Part of a video with one action.

    Attributes:
        video: its name in the JSON.
        start: seconds.
        end: seconds.
        label: the action in words.
    """

    video: str
    start: float
    end: float
    label: str

    @property
    def middle(self) -> float:
        """Seconds of its middle; of its start where it ends before."""
        return (self.start + max(self.start, self.end)) / 2


@dataclass(frozen=True)
class Plan:
    """Sample of WorldPrediction.

    Attributes:
        id: ``<task>/<dataset>/<uid>``.
        task: ``WM`` or ``PP``.
        dataset: source of its videos.
        segments: actions and their parts of videos, in order.
        candidates: each candidate in words.
        answer: 0-based place of the right one.
    """

    id: str
    task: str
    dataset: str
    segments: tuple[Segment, ...]
    candidates: tuple[str, ...]
    answer: int


def read_samples(path: Path, skipped: SkippedRecords) -> dict[str, dict[str, Any]] | None:
    """Read ``{dataset: {uid: sample}}``; None if the file has another layout, which ``skipped`` gets.

    A sample that is nested too deeply, or whose bytes are no UTF-8, can be read as JSON here, and is refused by
    `read_plan`: it costs itself alone.
    """
    text = path.read_text(encoding="utf-8-sig", errors="surrogateescape")

    def named(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        for name, times in Counter(name for name, _ in pairs).items() if len(dict(pairs)) < len(pairs) else ():
            if times > 1:
                skipped.add(str(path), f"{name!r} comes {times} times in one object, and the last one counts")
        return dict(pairs)

    try:
        content = json.loads(shallow(text), parse_int=_whole_number, object_pairs_hook=named)
    except (ValueError, RecursionError) as error:
        skipped.add(str(path), f"not JSON ({error})")
        return None
    if not isinstance(content, dict):
        skipped.add(str(path), "not {dataset: {uid: sample}}")
        return None
    for name in [name for name, samples in content.items() if not isinstance(samples, dict)]:
        skipped.add(f"{path}, {name}", f"the dataset must be an object, got {type(content.pop(name)).__name__}")
    return content


def _whole_number(digits: str) -> float:
    """Parse a number; one of more digits than Python converts costs its sample, and not the file."""
    return int(digits) if len(digits) < 4000 else math.inf


def answer_base(content: dict[str, dict[str, Any]], path: Path) -> int:
    """Find the first index of ``ground_truth``, 0 or 1, from all samples of a file that can be used at all.

    Raises:
        ValueError: both 0 and the number of candidates occur, or neither does.
    """
    zero = beyond = False
    for samples in content.values():
        for sample in samples.values():
            if not isinstance(sample, dict) or type(truth := sample.get("ground_truth")) is not int:
                continue
            if isinstance(given := sample.get("candidates"), list) and len(given) > 1 and 0 <= truth <= len(given):
                zero, beyond = zero or truth == 0, beyond or truth == len(given)
    if zero == beyond:
        why = "both 0 and the number of candidates occur" if zero else "neither 0 nor the number of candidates occurs"
        raise ValueError(f"{path} does not tell whether ground_truth counts from 0 or 1 ({why}); set ground_truth")
    return 0 if zero else 1


def read_plan(sample: Any, name: str, task: str, dataset: str, base: int) -> Plan:
    """Parse a sample of the file.

    Raises:
        BrokenRecord: it is not in the official layout or makes no sense; a ``ground_truth`` outside the candidates is
            an error, never clamped, and so is a name of a dataset or video that leaves its folder.
    """
    try:
        check_values([sample, name])
        if not stays_inside(dataset):
            raise ValueError(f"the dataset {dataset!r} leaves the folder")
        return _plan(sample, name, task, dataset, base)
    except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError) as error:
        raise BrokenRecord(f"not in the official layout ({error})") from None


def _plan(sample: Any, name: str, task: str, dataset: str, base: int) -> Plan:
    candidates = [[_segment(sample, uid) for uid in candidate] for candidate in sample["candidates"]]
    if len(candidates) < 2 or not all(candidates):
        raise ValueError("fewer than two candidates, or an empty one")
    truth = sample["ground_truth"]
    if isinstance(truth, bool) or not isinstance(truth, int) or not 0 <= truth - base < len(candidates):
        raise ValueError(f"ground_truth {truth!r} is none of the {len(candidates)} candidates, counted from {base}")
    original = sample.get("original_segments")
    happened = [_segment(sample, uid) for uid in original] if original else candidates[truth - base]
    words = tuple(", then ".join(segment.label for segment in candidate) for candidate in candidates)
    return Plan(name, task, dataset, tuple(happened), words, truth - base)


def _segment(sample: dict[str, Any], uid: Any) -> Segment:
    """Return a segment by its uid, or one that is written out."""
    fields = uid if isinstance(uid, dict) else sample["action_segments"][uid]
    start, end = float(fields["segment_start_time"]), float(fields["segment_end_time"])
    label, video = fields["action_label"], fields["video"]
    if not 0 <= start <= end < math.inf:
        raise ValueError(f"segment {uid!r} runs from {start} to {end} s")
    if not isinstance(label, str) or not label.strip() or not isinstance(video, str) or not video:
        raise ValueError(f"segment {uid!r} has no label or no video")
    if not stays_inside(video):
        raise ValueError(f"the video {video!r} leaves its folder")
    return Segment(video, start, end, label.strip())
