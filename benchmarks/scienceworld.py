"""ScienceWorld: an elementary-school science lab in text (Wang et al. 2022, allenai/ScienceWorld, Apache-2.0).

Transitions come from a frozen JSON lines file, because the simulator does not give the same worlds twice;
``python -m swirl_lightning.prepare.scienceworld --out DIR`` writes one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from swirl_lightning.benchmarks.text_suite import Part, TextSuite
from swirl_lightning.data.reading import BrokenRecord, SkippedRecords, records, text_field
from swirl_lightning.files.hashes import sha256
from swirl_lightning.transition import Transition

FILE = "gold_transitions.jsonl"
PARTS: dict[str, Part] = {"train": "train", "dev": "validation", "test": "test"}
"""Our names of the simulator's splits."""


class ScienceWorld(TextSuite):
    """Steps of gold paths, and off them; a state is the last observation, what ``look`` shows and the inventory.

    ``data_dir`` holds ``gold_transitions.jsonl``, one step a line: ``task, variation, split`` (train, dev or
    test, as the simulator splits the variations of each task), ``step, prev_obs, look_before, inv_before,
    action, obs, look_after, inv_after``, and ``on_path: false`` for a step off the gold path. Where
    ``gold_transitions.jsonl.sha256`` lies beside it, the file must match. An episode is a variation of a task; each
    task's training episodes are halved.

    Args:
        data_dir: as above.
        tasks: names of tasks to keep; None for all.
        per_task: report the metrics of states for each task, too.
        kwargs: as for `TextSuite`.
    """

    suite = "ScienceWorld"
    source = (
        "write it with `python -m swirl_lightning.prepare.scienceworld --out DIR` "
        "(needs Java and pip install 'swirl-lightning[scienceworld]')"
    )

    def __init__(
        self,
        data_dir: str,
        *,
        tasks: list[str] | None = None,
        per_task: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(data_dir, **kwargs)
        self.tasks, self.per_task = tasks, per_task
        self.data_sha256: str | None = None
        """Of the file, known after `check`: results can be compared where it is the same."""
        self._everything: dict[Part, list[Transition]] | None = None

    @property
    def path(self) -> Path:
        """File of transitions."""
        return self.data_dir / FILE

    def files(self, part: Part) -> Sequence[Path]:
        """Return the one file, which has all parts."""
        return [self.path]

    def check(self) -> None:
        """Check the hash of the file."""
        self.data_sha256 = sha256(self.path)
        digest = self.path.with_name(self.path.name + ".sha256")
        if digest.is_file():
            wanted = (digest.read_text().split() or [""])[0]
            if wanted != self.data_sha256:
                raise ValueError(
                    f"{self.path} is not the file that {digest.name} was written for: its SHA-256 is "
                    f"{self.data_sha256}, not {wanted}. Results would not be comparable; restore it, or remove "
                    f"{digest.name}"
                )

    def read(self, part: Part) -> list[Transition]:
        """Read the steps of an official split."""
        if self._everything is None:
            self._everything = self._read()
        rows = self._everything[part]
        known = {row.meta["task"] for found in self._everything.values() for row in found}
        unknown = sorted(set(self.tasks or ()) - known)
        if unknown:
            raise ValueError(f"unknown ScienceWorld tasks {unknown}; {self.path} has {sorted(known)}")
        return [row for row in rows if self.tasks is None or row.meta["task"] in self.tasks]

    def stratum(self, row: Transition) -> str:
        """Return the task: each is halved on its own."""
        return str(row.meta["task"])

    def groups(self) -> dict[str, Any]:
        """Return arguments for means over steps, by task if ``per_task``."""
        if not self.per_task:
            return {}
        rows = (self._everything or {}).values()
        tasks = sorted({str(row.meta["task"]) for found in rows for row in found})
        return {"group_by": "task", "categories": {task: task for task in tasks}}

    def _read(self) -> dict[Part, list[Transition]]:
        skipped = SkippedRecords(self.path)
        parts: dict[Part, list[Transition]] = {"train": [], "validation": [], "test": []}
        seen: set[str] = set()
        for place, fields in records(self.path, skipped):
            try:
                row = transition(fields)
                if row.id in seen:
                    raise BrokenRecord(f"the step {row.id} comes twice")
                if row.meta["split"] not in PARTS:
                    raise BrokenRecord(f"split must be one of {list(PARTS)}, got {row.meta['split']!r}")
            except BrokenRecord as error:
                skipped.add(place, error)
                continue
            seen.add(row.id)
            parts[PARTS[row.meta["split"]]].append(row)
        self._count("all", skipped, len(seen))
        return parts


def transition(fields: Mapping[str, Any]) -> Transition:
    """Turn one line into a transition.

    Raises:
        BrokenRecord: a field is missing or no text.
    """
    task, split = text_field(fields, "task"), text_field(fields, "split")
    for name in ("variation", "step"):
        if fields.get(name) is None:
            raise BrokenRecord(f"{name} is missing")
    episode = f"{task}/{fields['variation']}"
    return Transition(
        state(*(text_field(fields, name, empty=True) for name in ("prev_obs", "look_before", "inv_before"))),
        state(*(text_field(fields, name, empty=True) for name in ("obs", "look_after", "inv_after"))),
        text_field(fields, "action"),
        id=f"{split}/{episode}/{fields['step']}",
        meta={"task": task, "split": split, "episode": episode, "on_path": fields.get("on_path") is not False},
    )


def state(observation: str, look: str, inventory: str) -> str:
    """Join the three parts to one text."""
    return f"Observation: {observation.strip()}\n\n{look.strip()}\n\n{inventory.strip()}"
