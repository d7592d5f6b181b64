"""Files of labels: everything that was computed, by rank, and the records that pass the thresholds."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import quantiles
from typing import Any

from swirl_lightning.data.reading import BrokenRecord, SkippedRecords, parse_object, read_settings
from swirl_lightning.files.writing import append_lines, whole_file

LABELLED, SETTINGS = "labelled.jsonl", "settings.json"
CONFIDENCES = ("log_prob", "agreement")


@dataclass
class Summary:
    """Labelled and skipped pairs of a source.

    Attributes:
        path: of the records that are kept.
        kept: these records.
        labelled: all labelled records.
        skipped: pairs that could not be labelled.
        unread: records that were none.
    """

    path: Path
    kept: list[dict[str, Any]] = field(default_factory=list)
    labelled: list[dict[str, Any]] = field(default_factory=list)
    skipped: SkippedRecords = field(default_factory=lambda: SkippedRecords("pairs"))
    unread: int = 0

    def lines(self) -> list[str]:
        """Tell the counts, the spread of the confidences, and how often a given action was found."""
        left_out = len(self.skipped) + self.unread
        told = [f"{len(self.kept)} of {len(self.labelled)} labels kept, {left_out} records skipped: {self.path}"]
        for name in CONFIDENCES:
            values = [record[name] for record in self.labelled if name in record]
            if len(values) > 1:
                low, middle, high = quantiles(values, n=4)
                told.append(f"{name}: median {middle:.4f}, the middle half from {low:.4f} to {high:.4f}")
        for name, records in (("labelled", self.labelled), ("kept", self.kept)):
            right = [_words(r["action"]) == _words(r["given_action"]) for r in records if "given_action" in r]
            if right:
                share = 100 * sum(right) / len(right)
                told.append(f"as the action that was given, of {len(right)} {name}: {share:.1f} %")
        return told


class LabelLog:
    """Labels in a folder: a line per pair in a file of each rank, from which ``labelled.jsonl`` is made.

    Args:
        folder: new, empty, or of an earlier call with the same settings.
        settings: what labels depend on beside their pairs.

    Raises:
        ValueError: the folder is of other settings.
        FileExistsError: it holds something else.
    """

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self.folder, self.settings = folder, settings
        path = folder / SETTINGS
        if path.is_file():
            then = read_settings(path)
            changed = [name for name in {**settings, **then} if settings.get(name) != then.get(name)]
            if changed:
                raise ValueError(f"{folder} was made with another {', another '.join(changed)}: take another folder")
        elif folder.exists() and (
            not folder.is_dir() or any(p.name != f".{SETTINGS}.partial" for p in folder.iterdir())
        ):
            raise FileExistsError(f"{folder} exists and holds something else: take another folder")

    def start(self) -> None:
        """Make the folder."""
        with whole_file(self.folder / SETTINGS) as file:
            file.write(json.dumps(self.settings, indent=2).encode())

    def read(self) -> dict[str, dict[str, Any]]:
        """Return the lines of all ranks by the key of their pair; one that was cut short or damaged is left out."""
        found = {}
        for path in sorted(self.folder.glob("all-rank*.jsonl")):
            with open(path, encoding="utf-8", errors="replace") as file:
                for text in file:
                    try:
                        line = parse_object(text)
                    except BrokenRecord:
                        continue
                    if _is_line(line):
                        found[line["key"]] = line
        return found

    def add(self, lines: Iterable[dict[str, Any]], rank: int) -> None:
        """Write the lines of a batch at once."""
        texts = (json.dumps(line, ensure_ascii=False, default=str) for line in lines)
        append_lines(self.folder / f"all-rank{rank}.jsonl", texts)

    def summary(
        self, keys: Sequence[str], min_log_prob: float | None, min_agreement: float | None, unread: int
    ) -> Summary:
        """Sort the labels of pairs, in the order of their keys.

        Raises:
            ValueError: no pair could be labelled.
        """
        summary, lines = Summary(self.folder / LABELLED, unread=unread), self.read()
        least = {"log_prob": min_log_prob, "agreement": min_agreement}
        for line in (lines[key] for key in keys):
            if "skipped" in line:
                summary.skipped.add(line["id"], line["skipped"])
                continue
            record = line["record"]
            summary.labelled.append(record)
            if all(value is None or record.get(name, -math.inf) >= value for name, value in least.items()):
                summary.kept.append(record)
        summary.skipped.report(len(summary.labelled))
        return summary

    def write(self, summary: Summary) -> None:
        """Write the records that are kept."""
        with whole_file(summary.path) as file:
            for record in summary.kept:
                file.write((json.dumps(record, ensure_ascii=False, default=str) + "\n").encode())


def _is_line(line: dict[str, Any]) -> bool:
    """Tell whether it has what `LabelLog.summary` reads."""
    if not isinstance(line.get("key"), str):
        return False
    if "skipped" in line:
        return isinstance(line["skipped"], str) and isinstance(line.get("id"), str)
    record = line.get("record")
    if not isinstance(record, dict) or not isinstance(record.get("action"), str):
        return False
    numbers = [record.get("log_prob"), record.get("agreement", 0.0)]  # a run without FWM has no agreement
    return isinstance(record.get("given_action", ""), str) and all(
        isinstance(value, float) and math.isfinite(value) for value in numbers
    )


def _words(action: str) -> list[str]:
    return action.split()
