"""Transitions between images on disk: checked once, opened when they are asked for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from swirl_lightning.data.images import ImageSource, image_problem, open_rgb
from swirl_lightning.data.reading import first
from swirl_lightning.transition import Transition

_THREADS = 8  # Pillow decodes without the interpreter lock


@dataclass(frozen=True)
class ImageRecord:
    """A transition whose images are not open yet.

    Attributes:
        before: x.
        after: y, or None where a benchmark has an instruction but no image of its result.
        action: z in words.
        id: unique within its split.
        meta: as in `Transition`.
    """

    before: ImageSource
    after: ImageSource | None
    action: str | None
    id: str
    meta: dict[str, Any] = field(default_factory=dict)


class ImageTransitions(Sequence[Transition]):
    """Opens a record's images when it is asked for."""

    def __init__(self, records: Sequence[ImageRecord]) -> None:
        self.records = list(records)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Transition:  # type: ignore[override]
        record = self.records[index]
        after = None if record.after is None else open_rgb(record.after)
        return Transition(open_rgb(record.before), after, record.action, record.id, record.meta)


@dataclass
class Findings:
    """What is wrong with a split: every problem counted, the first ten named.

    Attributes:
        name: of the split, for messages.
        total: records looked at.
        problems: one line for each record that is left out.
        kinds: how many of each kind (``missing``, ``empty``, ...).
    """

    name: str
    total: int = 0
    problems: list[str] = field(default_factory=list)
    kinds: Counter[str] = field(default_factory=Counter)

    def add(self, place: str, reason: object) -> None:
        """One record that cannot be used; it counts as looked at."""
        self.total += 1
        self.problems.append(f"{place}: {reason}")
        self.kinds[str(reason).split(" (")[0].split(": ")[-1]] += 1

    @property
    def counts(self) -> dict[str, int]:
        """For results: records, used, skipped, and skipped by kind."""
        found = {"records": self.total, "used": self.total - len(self.problems), "skipped": len(self.problems)}
        return found | {f"skipped: {kind}": n for kind, n in sorted(self.kinds.items())}

    def report(self, strict: bool) -> None:
        """Warns of what is left out.

        Raises:
            ValueError: ``strict`` and anything is wrong, or nothing is left.
        """
        if not self.problems:
            return
        kinds = ", ".join(f"{n} {kind}" for kind, n in self.kinds.most_common())
        count = f"{len(self.problems)} of {self.total}"
        message = f"{self.name}: {count} records cannot be used ({kinds}):{first(self.problems)}"
        if strict or len(self.problems) == self.total:
            raise ValueError(message)
        rank_zero_warn(message)


def usable(records: Sequence[ImageRecord], findings: Findings, decode: bool = True) -> list[ImageRecord]:
    """The records whose images are all there and whole; the others go to ``findings``.

    Args:
        records: of one split.
        findings: where problems are told.
        decode: see `swirl_lightning.data.images.image_problem`.
    """
    sources = {s: None for r in records for s in (r.before, r.after) if s is not None}
    with ThreadPoolExecutor(_THREADS) as pool:
        problems = dict(zip(sources, pool.map(lambda s: image_problem(s, decode), sources), strict=True))
    kept = []
    for record in records:
        wrong = [
            (name, source, problems[source])
            for name, source in (("before", record.before), ("after", record.after))
            if source is not None and problems[source]
        ]
        if wrong:
            name, source, problem = wrong[0]
            where = f" {source}" if not isinstance(source, bytes) else ""
            findings.add(f"{record.id} ({name}{where})", problem)
        else:
            kept.append(record)
    findings.total += len(kept)
    return kept
