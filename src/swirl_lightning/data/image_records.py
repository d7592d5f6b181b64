"""Transitions between images on disk, checked once and opened when they are accessed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from swirl_lightning.data.images import MISSING, ImageSource, image_problems, open_rgb
from swirl_lightning.data.reading import SkippedRecords
from swirl_lightning.transition import Transition


@dataclass(frozen=True)
class ImageRecord:
    """Transition whose images are not open yet.

    Attributes:
        before: x.
        after: y, or None where a benchmark has an instruction but no image of its result.
        action: z in words.
        id: unique within its split.
        meta: as in `Transition`.
        further: images of later turns.
    """

    before: ImageSource
    after: ImageSource | None
    action: str | None
    id: str
    meta: dict[str, Any] = field(default_factory=dict)
    further: Sequence[ImageSource] = ()

    @property
    def images(self) -> dict[str, ImageSource]:
        """All that it needs, by name."""
        named = {"before": self.before, "after": self.after}
        named |= {f"turn {turn}": image for turn, image in enumerate(self.further, start=2)}
        return {name: image for name, image in named.items() if image is not None}


class ImageTransitions(Sequence[Transition]):
    """Sequence of transitions that opens a record's images when it is accessed."""

    def __init__(self, records: Sequence[ImageRecord]) -> None:
        self.records = list(records)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Transition:  # type: ignore[override]
        record = self.records[index]
        after = None if record.after is None else open_rgb(record.after)
        return Transition(open_rgb(record.before), after, record.action, record.id, record.meta)


def usable(records: Sequence[ImageRecord], skipped: SkippedRecords, without_after: bool = False) -> list[ImageRecord]:
    """The records whose images are all there and whole, each id once; the others go to ``skipped``.

    Args:
        records: of one split.
        skipped: gets the others.
        without_after: keep those of which y alone is missing, without it.
    """
    problems = image_problems(image for record in records for image in record.images.values())
    kept: dict[str, ImageRecord] = {}
    for record in records:
        if without_after and record.after is not None and problems[record.after] == MISSING:
            record = replace(record, after=None)
        wrong = [(name, image, problems[image]) for name, image in record.images.items() if problems[image]]
        if wrong:
            name, source, problem = wrong[0]
            where = f" {source}" if not isinstance(source, bytes) else ""
            skipped.add(f"{record.id} ({name}{where})", problem)
        elif record.id in kept:
            skipped.add(record.id, "its id comes twice")
        else:
            kept[record.id] = record
    return list(kept.values())
