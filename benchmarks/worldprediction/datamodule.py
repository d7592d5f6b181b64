"""WorldPrediction-Bench (arXiv 2506.04363): procedures in videos; facebookresearch/WorldPrediction."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Literal

from swirl_lightning.benchmarks.image_suite import ImageSuite
from swirl_lightning.benchmarks.worldprediction.records import Plan, answer_base, read_plan, read_samples
from swirl_lightning.data.images import open_rgb
from swirl_lightning.data.lazy import LazyRecord
from swirl_lightning.data.module import Split
from swirl_lightning.data.reading import BrokenRecord, SkippedRecords
from swirl_lightning.data.video import Video, VideoError, require_av
from swirl_lightning.engine.ranges import check_ranges
from swirl_lightning.files.writing import whole_file
from swirl_lightning.transition import Choices, Transition

TASKS = ("WM", "PP")
MAX_TURNS = 6
_KNOWN_BY = 100_000  # bytes of a video
_ENDINGS = ("", ".mp4", ".mkv", ".webm", ".avi", ".MP4")


class WorldPrediction(ImageSuite):
    """WorldPrediction-WM and -PP: rollouts over the steps of a procedure, and the official multiple choice.

    Layout of ``data_dir``: ``WorldPrediction-WM.json`` and ``WorldPrediction-PP.json``; videos, which come
    from five other sources, in ``videos/<dataset>/``, ``<dataset>/`` or ``videos/``, with or without their
    ending in the JSON.

    Rollout: the start frame is the first frame of the first segment; step k has the label of segment k as
    its action and the last frame of segment k as its reference (but see ``frames``); each step starts from the model's
    own previous frame. Scores are given for each turn, dataset and both (``judge/turn 3``, ``judge/COIN``,
    ``judge/COIN/turn 3``), and as the paper's means over turns (``judge/mean over turns``,
    ``judge/COIN/mean over turns``). In these, late turns, which few samples have, are weighted as the first;
    ``judge`` is the mean over all steps. The segments are the sample's ``original_segments`` where the file names
    them, and otherwise those of the right candidate.

    Multiple choice: ``choice/idm_accuracy`` and ``choice/fwm_accuracy``, see `Evaluator`; a candidate of
    several segments is read as "first label, then second label".

    Frames are cut out once, before the model loads, and kept in ``frames_dir``. Samples of a video
    that is missing or damaged are skipped and counted.

    Args:
        data_dir: see above.
        task: ``PP``, procedural planning, which the paper has, or ``WM``, single steps. They are two benchmarks, each
            with an accuracy of its own.
        datasets: of the test split; null for all.
        max_turns: longest rollout, 1 to 6.
        frames: ``ends`` of the segments, or their ``middle`` for start and references, as in the authors' code: the
            first step then has the start frame for a reference.
        ground_truth: first index of ``ground_truth``, 0 or 1; ``auto`` finds it from the file (0 occurs, or the
            number of candidates does) and stops if the file leaves both open.
        frames_dir: folder for frames; null for ``frames`` in ``data_dir``.
        kwargs: as for `ImageSuite` (strict, clip, judge, limit) and `TransitionDataModule`.

    Raises:
        ValueError: an option is out of range or unknown.
    """

    suite = "WorldPrediction"
    source = (
        "Get the JSON files from https://github.com/facebookresearch/WorldPrediction and the videos from the "
        "datasets that it names, and set data_dir to the folder with both."
    )
    judge_template = "worldprediction"
    category_key = "groups"
    test_only = True

    def __init__(
        self,
        *,
        data_dir: str,
        task: Literal["PP", "WM"] = "PP",
        datasets: Sequence[str] | None = None,
        max_turns: int = MAX_TURNS,
        frames: Literal["ends", "middle"] = "ends",
        ground_truth: Literal["auto", "0", "1"] = "auto",
        frames_dir: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(data_dir=data_dir, **kwargs)
        check_ranges("data", {"max_turns": max_turns}, max_turns=f"whole [1, {MAX_TURNS}]")
        if str(ground_truth) not in ("auto", "0", "1"):
            raise ValueError(f"ground_truth must be 'auto', '0' or '1', got {ground_truth!r}")
        if frames not in ("ends", "middle"):
            raise ValueError(f"frames must be 'ends' or 'middle', got {frames!r}")
        if task not in TASKS:
            raise ValueError(f"task must be one of {list(TASKS)}, got {task!r}")
        self.task, self.datasets, self.max_turns, self.frames = task, datasets, max_turns, frames
        self.ground_truth = str(ground_truth)
        self.frames_dir = Path(frames_dir) if frames_dir else self.data_dir / "frames"

    @property
    def categories(self) -> tuple[str, ...]:
        """Turns, datasets, and turns of datasets."""
        return (*self._turns, *self._names, *(f"{name}/{turn}" for name in self._names for turn in self._turns))

    @property
    def averages(self) -> Mapping[str, Sequence[str]]:
        """Mean over turns, the paper's main number, of all and of each dataset."""
        own = {f"{name}/mean over turns": [f"{name}/{turn}" for turn in self._turns] for name in self._names}
        return {"mean over turns": self._turns, **own}

    def prepare_data(self) -> None:
        """Cut out the frames in one process, so that the others find them."""
        if self.data_dir.is_dir():
            self.read_records("test", SkippedRecords(self.suite))

    def read_records(self, split: Split, skipped: SkippedRecords) -> list[LazyRecord]:
        """Read the samples, and cut out their frames."""
        require_av()
        plans = self._plans(skipped)[: self.limit]
        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            cut = list(pool.map(self._frames, plans))
        records = []
        for plan, (frames, problem) in zip(plans, cut, strict=True):
            if problem:
                skipped.add(plan.id, problem)
                continue
            meta = {
                "dataset": plan.dataset,
                "task": plan.task,
                "groups": self._groups(plan.dataset, 1),
                "labels": [segment.label for segment in plan.segments],
                "candidates": plan.candidates,
                "answer": plan.answer,
            }
            start, first, *further = frames
            records.append(LazyRecord(start, first, plan.segments[0].label, plan.id, meta, further))
        return records

    def load_split(self, split: Split) -> Sequence[Transition]:
        """Return samples as rollouts with their multiple choice."""
        return _Rollouts(self.checked(split), self.max_turns, self._groups)

    # ---- parts -----------------------------------------------------------------------------------
    @cached_property
    def _names(self) -> list[str]:
        return sorted({record.meta["dataset"] for record in self.checked("test")})

    @property
    def _turns(self) -> list[str]:
        return [f"turn {turn}" for turn in range(1, self.max_turns + 1)]

    def _plans(self, skipped: SkippedRecords) -> list[Plan]:
        path = self.require(self.data_dir / f"WorldPrediction-{self.task}.json")
        content = read_samples(path, skipped)
        if content is None:
            return []
        chosen = self.datasets or list(content)
        unknown = sorted(set(chosen) - set(content))
        if unknown:
            raise ValueError(f"{path} has no dataset {', '.join(unknown)}; it has {', '.join(content)}")
        base = int(self.ground_truth) if self.ground_truth != "auto" else answer_base(content, path)
        plans = []
        for dataset in chosen:
            for uid, sample in content[dataset].items():
                name = f"{self.task}/{dataset}/{uid}"
                try:
                    plans.append(read_plan(sample, name, self.task, dataset, base))
                except BrokenRecord as error:
                    skipped.add(name, error)
        return plans

    def _frames(self, plan: Plan) -> tuple[list[Path], str | None]:
        """Cut out the start frame, a frame of each segment of a rollout, and one of the last segment."""
        try:
            first, ends = plan.segments[0], self.frames == "ends"
            frames = [self._frame(plan.dataset, first.video, first.start if ends else first.middle, last=False)]
            for segment in (*plan.segments[: self.max_turns], *plan.segments[self.max_turns :][-1:]):
                time = segment.end if ends else segment.middle
                frames.append(self._frame(plan.dataset, segment.video, time, last=ends))
        except VideoError as error:
            return [], f"{error.kind} ({error})"
        except OSError as error:
            return [], f"frame cannot be kept ({error})"
        return frames, None

    def _frame(self, dataset: str, video: str, seconds: float, last: bool) -> Path:
        file = self._video(dataset, video)
        key = hashlib.blake2b(f"{video}|{seconds:.3f}|{last}|".encode() + _identity(file), digest_size=10).hexdigest()
        path = self.frames_dir / dataset / f"{key}.png"
        if not path.is_file():
            with Video(file) as opened:
                image = opened.frame_at(seconds, last=last, within=2.0)  # a label may end a little after its video
            with whole_file(path, alone=False) as kept:
                image.save(kept, "PNG")
        return path

    def _video(self, dataset: str, name: str) -> Path:
        for folder in (self.data_dir / "videos" / dataset, self.data_dir / dataset, self.data_dir / "videos"):
            for ending in _ENDINGS:
                if os.path.isfile(path := folder / f"{name}{ending}"):  # no Path.is_file: names may be too long
                    return path
        raise VideoError("missing video", str(self.data_dir / "videos" / dataset / name))

    @staticmethod
    def _groups(dataset: str, turn: int) -> list[str]:
        return [f"turn {turn}", dataset, f"{dataset}/turn {turn}"]


def _identity(video: Path) -> bytes:
    """Hash of a video's size, time and first bytes: another one under the same name has frames of its own."""
    about = video.stat()
    return _hashed(video, about.st_size, about.st_mtime_ns)


@lru_cache(maxsize=10_000)
def _hashed(video: Path, size: int, time: int) -> bytes:
    with open(video, "rb") as file:
        return hashlib.blake2b(f"{size}|{time}|".encode() + file.read(_KNOWN_BY), digest_size=16).digest()


class _Rollouts(Sequence[Transition]):
    """Sequence of rollouts that opens the frames of a sample when it is accessed."""

    def __init__(self, records: list[LazyRecord], max_turns: int, groups: Any) -> None:
        self._records, self._max_turns, self._groups = records, max_turns, groups

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Transition:  # type: ignore[override]
        record = self._records[index]
        meta = record.meta
        frames = [open_rgb(image) for image in record.images.values()]  # turns + 1, and perhaps that of the plan's end
        shared = {"dataset": meta["dataset"], "task": meta["task"]}
        start, *turns = (
            Transition(
                frames[k],
                frames[k + 1],
                label,
                f"{record.id}/turn {k + 1}" if k else record.id,
                {**shared, "turn": k + 1, "groups": self._groups(meta["dataset"], k + 1)},
            )
            for k, label in enumerate(meta["labels"][: self._max_turns])
        )
        choices = Choices(meta["candidates"], meta["answer"], after=frames[-1])
        return replace(start, turns=tuple(turns), choices=choices)
