"""Transitions whose images are checked once, and opened when they are accessed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from swirl_lightning.data.images import MISSING, ImageSource, image_problems, open_rgb
from swirl_lightning.data.reading import SkippedRecords
from swirl_lightning.transition import State, Transition

Source = str | ImageSource
"""State that is a text, or an image that is not open yet: its file or its bytes."""


@dataclass(frozen=True, slots=True)
class LazyRecord:
    """Transition whose images are not open yet.

    Attributes:
        before: x.
        after: y, or None where there is an instruction but no result of it.
        action: z in words.
        id: unique within its split.
        meta: as in `Transition`.
        further: images of later turns.
    """

    before: Source
    after: Source | None
    action: str | None
    id: str
    meta: dict[str, Any] = field(default_factory=dict)
    further: Sequence[ImageSource] = ()

    @property
    def images(self) -> dict[str, ImageSource]:
        """All images that it needs, by name."""
        named = {"before": self.before, "after": self.after}
        named |= {f"turn {turn}": image for turn, image in enumerate(self.further, start=2)}
        return {name: image for name, image in named.items() if image is not None and not isinstance(image, str)}


class LazyTransitions(Sequence[Transition]):
    """Sequence of transitions that opens a record's images when it is accessed.

    Attributes:
        records: what it is made of, in its order.
    """

    def __init__(self, records: Sequence[LazyRecord]) -> None:
        self.records = list(records)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Transition:  # type: ignore[override]
        record = self.records[index]
        after = None if record.after is None else _open(record.after)
        return Transition(_open(record.before), after, record.action, record.id, record.meta)


def _open(state: Source) -> State:
    return state if isinstance(state, str) else open_rgb(state)


def usable(records: Sequence[LazyRecord], skipped: SkippedRecords, without_after: bool = False) -> list[LazyRecord]:
    """The records whose images are all there and whole, each id once; the others go to ``skipped``.

    Args:
        records: of one split.
        skipped: gets the others.
        without_after: keep those of which y alone is missing, without it.
    """
    problems = image_problems(image for record in records for image in record.images.values())
    kept: dict[str, LazyRecord] = {}
    for record in records:
        if without_after and "after" in record.images and problems[record.images["after"]] == MISSING:
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
