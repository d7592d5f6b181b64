"""Labelled image edits for the warm-up, from the corpora of the paper, as one JSON lines file.

    python -m swirl_lightning.prepare.edit_corpora data/edits/warmup.jsonl --aurora AURORA \
        --pico_banana PICO/sft_with_local_source_image_path.jsonl --pico_banana PICO/multi_turn.jsonl --validation 200

`JSONLTransitions(warmup=...)` reads it. With ``--validation``, that many records, chosen at random, go to
``validation.jsonl`` beside it instead. Images are not copied: the file holds their paths,
relative to itself. Records whose images are missing are left out and counted.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from swirl_lightning.benchmarks.aurora_records import TRAIN_TASKS, clip_of, edits, train_files
from swirl_lightning.console.run import run_command
from swirl_lightning.data.lazy import LazyRecord, usable
from swirl_lightning.data.reading import BrokenRecord, SkippedRecords, lines, parse_object
from swirl_lightning.data.reading import records as read_records
from swirl_lightning.data.splitting import rank_of
from swirl_lightning.engine.ranges import check_ranges
from swirl_lightning.files.paths import relative_to
from swirl_lightning.files.writing import whole_file
from swirl_lightning.prepare import command_parser


def aurora_train(folder: Path, skipped: SkippedRecords) -> Iterator[LazyRecord]:
    """Read AURORA's training sets, ``data/<task>/train.json``: ``{instruction, input, output}``.

    Raises:
        FileNotFoundError: none of them is there.
    """
    for task, path in train_files(folder).items():
        for where, entry in read_records(path, skipped):
            number = where.rpartition("[")[2].removesuffix("]")
            meta = {"corpus": "aurora", "task": task, **({"img_id": entry["img_id"]} if "img_id" in entry else {})}
            yield from edits(entry, folder, f"aurora/{task}/{number}", meta, skipped, target=True)


def pico_banana(path: Path, skipped: SkippedRecords) -> Iterator[LazyRecord]:
    """Read Pico-Banana-400K, single-turn or multi-turn, which is decided line by line.

    Single-turn: ``summarized_text`` (or ``text``), ``output_image`` and ``local_input_image`` (which the corpus's own
    script adds) or ``open_image_input_url``, whose last part is then looked for beside the file and in
    ``openimage_source_images/``. Multi-turn: ``files`` [{id, url}] from the first image to the last, and
    one of ``metadata_edit_turn_prompts`` between each two.

    Raises:
        FileNotFoundError: no such file.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"no file {path}; get the Pico-Banana-400K manifests from https://github.com/apple/pico-banana-400k"
        )
    folder = path.parent
    for where, line in lines(path):
        place = f"pico-banana/{path.stem}/{where.rpartition(':')[2]}"
        try:
            entry = parse_object(line)
            if "files" in entry:
                yield from _turns(entry, folder, place)
            else:
                source = entry.get("local_input_image") or entry["open_image_input_url"]
                meta = {"corpus": "pico-banana", "edit_type": entry.get("edit_type", "")}
                words = entry.get("summarized_text") or entry["text"]  # the short one, as the paper's authors take it
                yield _record(_local(source, folder), _local(entry["output_image"], folder), words, place, meta)
        except (BrokenRecord, KeyError, TypeError, AttributeError, ValueError) as error:
            skipped.add(place, f"not in the official layout ({error!r})")


def write(
    out: str | Path,
    aurora: Sequence[str | Path] = (),
    pico_banana_files: Sequence[str | Path] = (),
    strict: bool = False,
    validation: int = 0,
) -> dict[str, int]:
    """Write a JSON lines file of all records whose images are whole.

    Args:
        out: the file.
        aurora: folders in AURORA's layout.
        pico_banana_files: manifests of Pico-Banana-400K.
        strict: stop if anything is wrong.
        validation: how many records go to ``validation.jsonl`` beside ``out`` instead.

    Returns:
        Counts: records, used, skipped, and skipped by kind.

    Raises:
        FileNotFoundError: a corpus is not there.
        ValueError: nothing is usable, ``strict`` and anything is wrong, ``validation`` leaves nothing or ``out`` is
            where they go, or none are held out and an earlier call's still lie there; a file that would be written
            over is one of the corpora's, or a ``validation.jsonl`` of other records.
    """
    check_ranges("edit_corpora", {"validation": validation}, validation="whole [0, inf)")
    out, skipped = Path(out), SkippedRecords("edits")
    beside = out.with_name("validation.jsonl")
    if validation and out.resolve() == beside.resolve():
        raise ValueError(f"{out} would hold what is trained on and what is held out: give it another name")
    inputs = {Path(path).resolve() for path in pico_banana_files}
    inputs |= {Path(folder, "data", task, "train.json").resolve() for folder in aurora for task in TRAIN_TASKS}
    if over := [path for path in (out, beside) if path.resolve() in inputs]:
        raise ValueError(f"{over[0]} is one of the corpora, and would be written over: name another file")
    records: list[LazyRecord] = []
    for folder in aurora:
        records += aurora_train(Path(folder), skipped)
    for path in pico_banana_files:
        records += pico_banana(Path(path), skipped)
    kept = usable(records, skipped)
    skipped.report(len(kept), strict)
    if validation >= len(kept):
        raise ValueError(f"of {len(kept)} usable records, validation={validation} would leave none to train on")
    # turns of one image, and pairs of one video, follow one another here, so they are on the same side, but for one's
    by_image = sorted(kept, key=lambda record: rank_of(_origin(record), 0))
    held_out = {record.id for record in by_image[:validation]}
    known = _ids(beside) if beside.is_file() else set()
    if same := known & {record.id for record in kept}:
        if not held_out:
            raise ValueError(
                f"{beside} of an earlier call has {len(same)} of these records: hold some out, or remove it"
            )
    elif beside.is_file() and held_out:
        raise ValueError(
            f"{beside} has other records, and would be written over: remove it, or write to another folder"
        )
    _write_lines(out, [record for record in kept if record.id not in held_out])
    if held_out:
        _write_lines(beside, [record for record in kept if record.id in held_out])
    return skipped.counts(len(kept))


def _origin(record: LazyRecord) -> str:
    return record.id.split("/turn ")[0] if record.meta["corpus"] == "pico-banana" else clip_of(record)


def _write_lines(out: Path, records: list[LazyRecord]) -> None:
    with whole_file(out) as file:
        for record in records:
            line = {
                "before_image": relative_to(out.parent, Path(str(record.before))),
                "after_image": relative_to(out.parent, Path(str(record.after))),
                "action": record.action,
                "id": record.id,
                **record.meta,
            }
            file.write((json.dumps(line, ensure_ascii=False) + "\n").encode())


def _ids(path: Path) -> set[str]:
    return {str(entry.get("id")) for _, entry in read_records(path, SkippedRecords("edits"))}


def _turns(entry: dict[str, Any], folder: Path, place: str) -> Iterator[LazyRecord]:
    files, prompts = entry["files"], entry["metadata_edit_turn_prompts"]
    if len(files) != len(prompts) + 1:
        raise ValueError(f"{len(files)} images for {len(prompts)} edits")
    images = [_local(file["url"], folder) for file in files]
    for turn, words in enumerate(prompts):
        meta = {"corpus": "pico-banana", "turn": turn + 1}
        yield _record(images[turn], images[turn + 1], words, f"{place}/turn {turn + 1}", meta)


def _record(before: Path, after: Path, words: Any, place: str, meta: dict[str, Any]) -> LazyRecord:
    if not isinstance(words, str) or not words.strip():
        raise ValueError("no instruction")
    return LazyRecord(before, after, words.strip(), place, meta)


def _local(name: str, folder: Path) -> Path:
    """Find an image on disk: a path beside the manifest, or the last part of an address."""
    if "://" not in name:
        return folder / name
    last = Path(urlparse(name).path).name
    places = (folder / last, folder / "openimage_source_images" / last)
    # no Path.is_file: names may be too long
    return next((path for path in places if os.path.isfile(path)), places[-1])


def main(args: Sequence[str] | None = None) -> None:
    """Entry point of the command."""
    parser = command_parser(
        "edit_corpora",
        "OUT",
        "Labelled edits of published corpora as JSON lines.",
        "data/edits/warmup.jsonl --aurora AURORA --validation 200",
    )
    parser.add_argument("out", help="JSON lines file to write")
    parser.add_argument("--aurora", action="append", default=[], help="folder in AURORA's layout")
    parser.add_argument("--pico_banana", action="append", default=[], help="manifest of Pico-Banana-400K")
    parser.add_argument("--strict", action="store_true", help="stop if anything is wrong")
    parser.add_argument("--validation", type=int, default=0, help="records that go to validation.jsonl beside it")
    options = parser.parse_args(args)
    if not options.aurora and not options.pico_banana:
        parser.error("give --aurora, --pico_banana or both")
    counts = write(options.out, options.aurora, options.pico_banana, options.strict, options.validation)
    print(", ".join(f"{name}: {count}" for name, count in counts.items()))


if __name__ == "__main__":
    run_command(main)
