"""Labelled transitions from clips of videos that a table names: the first and the last frame of each, and its action.

    python -m swirl_lightning.prepare.labelled_clips labels.csv data/clips --validation 100

writes ``data/clips/warmup.jsonl``, which `JSONLTransitions(warmup=...)` reads, and ``data/clips/frames/``. The table
has a line of names and then a line for each clip: ``video`` (a file, relative to the table), ``action`` (in words)
and, where a clip is a part of its video, ``start`` and ``end`` in seconds. With ``--validation``, so many clips go to
``validation.jsonl`` beside it instead; all clips of a video are on one side. Clips that cannot be used are left out
and counted.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from rich.progress import track

from swirl_lightning.console.run import run_command
from swirl_lightning.data.reading import BrokenRecord, SkippedRecords
from swirl_lightning.data.splitting import rank_of
from swirl_lightning.data.video import Video, VideoError, require_av, save_frame
from swirl_lightning.engine.ranges import check_ranges
from swirl_lightning.files.hashes import digest
from swirl_lightning.files.writing import whole_file, written_to
from swirl_lightning.prepare import command_parser

_SEPARATORS = ",;\t"  # programs of tables write the second one where the comma is for decimals
_NEEDED = ("video", "action")


def write(
    table: str | Path, out: str | Path, validation: int = 0, size: int = 512, strict: bool = False
) -> dict[str, int]:
    """Write the labelled transitions of all clips that can be read.

    Args:
        table: the file.
        out: folder for ``warmup.jsonl``, ``validation.jsonl`` and ``frames/``; frames of earlier calls are kept.
        validation: clips that are held out, at least: the rest of their videos' clips goes with them.
        size: shorter side in pixels to which frames are shrunk; 0 keeps their size.
        strict: stop if a clip cannot be used.

    Returns:
        Counts: records, used, skipped, and skipped by kind.

    Raises:
        FileNotFoundError: no such table.
        ValueError: it has no such columns or no usable clip, ``strict`` and one cannot be used, ``validation`` leaves
            nothing to train on, or none is held out and an earlier call's still lie there.
    """
    numbers = {"validation": validation, "size": size}
    check_ranges("labelled_clips", numbers, **dict.fromkeys(numbers, "whole [0, inf)"))
    require_av()
    table, out = Path(table), Path(out)
    if not validation and (out / "validation.jsonl").exists():
        raise ValueError(f"{out / 'validation.jsonl'} is of an earlier call: hold some out again, or remove it")
    skipped, records = SkippedRecords(table), list[dict[str, Any]]()
    with written_to(out):
        (out / "frames").mkdir(parents=True, exist_ok=True)
    for line, row in track(list(_rows(table)), "clips"):
        try:
            records.append(_transition(row, line, table, out, size))
        except BrokenRecord as error:
            skipped.add(f"{table}:{line}", error)
        except VideoError as error:
            skipped.add(f"{table}:{line}", f"{error.kind} ({error})")
    if not records and not skipped:
        raise ValueError(f"{table} names no clip")
    skipped.report(len(records), strict)
    ordered = sorted(records, key=lambda record: rank_of(record["video"], 0))
    held_out = list[dict[str, Any]]()
    for _, clips in groupby(ordered, key=lambda record: record["video"]):
        if len(held_out) >= validation:
            break
        held_out += clips
    names = {record["id"] for record in held_out}
    if len(names) == len(records):
        raise ValueError(f"of {len(records)} usable clips, validation={validation} would leave none to train on")
    _write(out / "warmup.jsonl", [record for record in records if record["id"] not in names])
    if names:
        _write(out / "validation.jsonl", [record for record in records if record["id"] in names])
    return skipped.counts(len(records))


def _rows(table: Path) -> Iterator[tuple[int, dict[str | None, Any]]]:
    """Yield the number of the line, and the fields by name, of each clip; those without a name are under None."""
    try:
        text = table.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{table} is not UTF-8 ({error}): save it as UTF-8") from None
    separator = max(_SEPARATORS, key=text.partition("\n")[0].count)
    rows = csv.DictReader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True)
    try:
        rows.fieldnames = [name.strip() for name in rows.fieldnames or ()]
        if lacking := [name for name in _NEEDED if name not in rows.fieldnames]:
            raise ValueError(f"{table} has no column {lacking[0]!r} in its first line, which has {rows.fieldnames}")
        for row in rows:
            yield rows.line_num, row
    except csv.Error as error:
        raise ValueError(f"{table}:{rows.line_num} is no line of a table ({error})") from None


def _transition(row: dict[str | None, Any], line: int, table: Path, out: Path, size: int) -> dict[str, Any]:
    """Write the two frames of a clip; returns its record."""
    if None in row:
        raise BrokenRecord(f"more fields than names (the last one is {row[None][-1]!r})")
    name, action = ((row[field] or "").strip() for field in _NEEDED)
    if not name or not action:
        raise BrokenRecord(f"no {'action' if name else 'video'}")
    start, end = (_seconds(row, field) for field in ("start", "end"))
    with Video(table.parent / name) as video:
        before, earlier = video.frame(start or 0.0, within=1.0)
        # a video that was cut short ends before it says: its last frame is not that of the action
        after, later = video.frame(video.duration if end is None else end, last=True, within=1.0)
    if later <= earlier:
        raise BrokenRecord(f"fewer than two frames from start to end ({name})")
    one = os.path.relpath(video.path, table.parent)  # the same for all spellings
    # by what they show, and not by the line: what an earlier call has written stays true if this one is stopped
    key = digest(repr((one, os.path.getsize(video.path), earlier, later, size)).encode())
    record = {f"{side}_image": f"frames/{key}-{side}.jpg" for side in ("before", "after")}
    for path, frame in zip(record.values(), (before, after), strict=True):
        save_frame(frame, out / path, size)
    return record | {"action": action, "id": f"{table.name}:{line}", "video": one, "start": earlier, "end": later}


def _seconds(row: dict[str | None, Any], field: str) -> float | None:
    text = (row.get(field) or "").strip()
    try:
        found = float(text.replace(",", ".")) if text else None
    except ValueError:
        found = math.nan
    if found is not None and not (math.isfinite(found) and found >= 0):
        raise BrokenRecord(f"{field} is no number of seconds, got {text[:60]!r}")
    return found


def _write(path: Path, records: Sequence[dict[str, Any]]) -> None:
    with whole_file(path) as file:
        file.writelines((json.dumps(record, ensure_ascii=False) + "\n").encode() for record in records)


def main(args: Sequence[str] | None = None) -> None:
    """Entry point of the command."""
    parser = command_parser(
        "labelled_clips",
        "TABLE OUT",
        "Labelled transitions from clips that a table names.",
        "labels.csv data/clips --validation 100",
    )
    parser.add_argument("table", help="CSV file with the columns video, action and, for parts of videos, start and end")
    parser.add_argument("out", help="folder for warmup.jsonl, validation.jsonl and frames")
    parser.add_argument("--validation", type=int, default=0, help="clips that go to validation.jsonl; default: 0")
    parser.add_argument("--size", type=int, default=512, help="shorter side in pixels, 0 for none; default: 512")
    parser.add_argument("--strict", action="store_true", help="stop if a clip cannot be used")
    options = parser.parse_args(args)
    counts = write(options.table, options.out, options.validation, options.size, options.strict)
    print(", ".join(f"{name}: {count}" for name, count in counts.items()))


if __name__ == "__main__":
    run_command(main)
