"""Transitions from the user's own JSON lines or parquet files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from swirl_lightning.data.images import image_problems
from swirl_lightning.data.lazy import LazyRecord, LazyTransitions, Source
from swirl_lightning.data.module import Split, TransitionDataModule
from swirl_lightning.data.parquet import import_pyarrow, parquet_rows
from swirl_lightning.data.reading import BrokenRecord, SkippedRecords, first, lines, parse_object
from swirl_lightning.transition import Transition


class JSONLTransitions(TransitionDataModule):
    """Transitions from JSON lines or parquet files, one file per split.

    A line is an object with ``before`` and ``after`` (text), or ``before_image`` and ``after_image``
    (image files, relative to the JSON lines file), with ``action`` where the split is labelled, and with
    ``id`` if you like (else the file's name and the line). Other fields end up in ``Transition.meta``::

        {"before_image": "frames/0.png", "after_image": "frames/1.png", "action": "turn left"}

    For prediction one of the action and the state after is enough: with the action the FWM predicts the state, with
    the state after the IDM names the action, which the FWM then follows.

    A parquet file has the same names as columns; its images may also be stored in it, as bytes or as the hub's
    ``{bytes, path}``. Files are read line by line; images are checked at the start and opened when they are needed.
    The splits that a command needs are read in `setup`, before the model loads.

    Args:
        warmup: file of labelled transitions.
        state_only: file of pairs; actions in it are ignored.
        validation: labelled file for validation.
        test: labelled file for test; the file for prediction.
        strict: raise if any record is broken; otherwise broken ones are skipped, counted in :attr:`skipped`, and
            the first ten are named.
        kwargs: see `TransitionDataModule`.

    Raises:
        FileNotFoundError: at setup, the file of a split that the command needs does not exist.
        ImportError: at setup, a parquet file and no ``pyarrow``.
        ValueError: at setup, ``strict`` and a broken record, a split without any usable record, or no file for a
            split that the command needs; or records for prediction with neither an action nor a state after.
    """

    def __init__(
        self,
        *,
        warmup: str | None = None,
        state_only: str | None = None,
        validation: str | None = None,
        test: str | None = None,
        strict: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        paths = {"warmup": warmup, "state_only": state_only, "validation": validation, "test": test}
        self.paths = {name: Path(path) for name, path in paths.items() if path is not None}
        self.strict = strict
        self._predicted: Sequence[Transition] | None = None
        self.skipped: dict[str, int] = {}
        """Number of broken records in each split read so far."""

    def setup(self, stage: str) -> None:
        """Check that the files which the command needs exist, then read them."""
        needed = self.splits_needed(stage)
        self._require(needed)
        places = {name: path.resolve() for name, path in self.paths.items()}
        for name in ("validation", "test"):
            if stage != "predict" and name in needed and name in places and places[name] == places.get("warmup"):
                told = "is the file of warmup, too: its scores are of what was learned by heart"
                rank_zero_warn(f"the {name} file {self.paths[name]} {told}")
        super().setup(stage)

    def _require(self, splits: Sequence[Split]) -> None:
        missing = [
            f"{name}: {self.paths[name]}" for name in splits if name in self.paths and not self.paths[name].is_file()
        ]
        if missing:
            raise FileNotFoundError(f"no such file: {'; '.join(missing)}")

    def predict_rows(self) -> Sequence[Transition]:
        """Read the test file, whose records may here lack the action or the state after.

        Raises:
            ValueError: as in :meth:`load_split`, or there is no record, or one has neither of the two.
        """
        if self._predicted is None:
            self._predicted = self._read("test", partial=True)
        return self._predicted

    def load_split(self, split: Split) -> Sequence[Transition]:
        """Read a split's file.

        Raises:
            ValueError: no file is given, or none of its records can be used.
        """
        return self._read(split)

    def _read(self, split: Split, partial: bool = False) -> Sequence[Transition]:
        if split not in self.paths:
            raise ValueError(
                f"no file is given for the split {split!r}; set it in data.init_args{_WITHOUT.get(split, '')} "
                f"(given: {sorted(self.paths)} of {list(get_args(Split))})"
            )
        self._require([split])
        skipped = SkippedRecords(self.paths[split])
        parsed: list[tuple[str, LazyRecord]] = []
        nameless = 0
        for place, fields in _rows(self.paths[split], skipped):
            nameless += fields.get("id", "") is None
            try:
                labelled = split != "state_only" and not partial
                parsed.append((place, _parse(fields, place, self.paths[split].parent, labelled, ends=not partial)))
            except BrokenRecord as error:
                skipped.add(place, error)
        if nameless:
            rank_zero_warn(f"{nameless} records in {self.paths[split]} have id: null; file and line stand in its place")
        found = _whole(parsed, skipped)
        if not found and not skipped:
            cure = "; to train without it set trainer.limit_val_batches to 0" if split == "validation" else ""
            raise ValueError(f"{self.paths[split]} has no record, and is given as {split}{cure}")
        self.skipped[split] = len(skipped)
        if skipped and not found:
            every = f"none of the {len(skipped)} records in {self.paths[split]} can be used as {split}"
            raise ValueError(f"{every}:{first(skipped.messages)}")
        skipped.report(len(found), self.strict)
        if bare := [record.id for record in found if record.action is None and record.after is None]:
            told = (
                f"{len(bare)} of {len(found)} records in {self.paths[split]} have neither an action nor a state after"
            )
            raise ValueError(
                f"{told}: give each one of the two, so that there is something to predict from:{first(bare)}"
            )
        return LazyTransitions(found)


_WITHOUT = {
    "state_only": ", or phase_switch.iterations to 0",
    "validation": ", or trainer.limit_val_batches to 0",
}
"""Advice for a command that lacks a split."""


def _rows(path: Path, skipped: SkippedRecords) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (place, fields) of every record that can be read."""
    if path.suffix in (".csv", ".tsv"):
        raise ValueError(
            f"{path} is a table, and files are JSON lines or parquet: of clips of videos that it names, "
            "python -m swirl_lightning.prepare.labelled_clips makes them"
        )
    if path.suffix != ".parquet":
        for place, line in lines(path):
            try:
                yield place, parse_object(line)
            except BrokenRecord as error:
                skipped.add(place, error)
        return
    pyarrow = import_pyarrow(path)
    try:
        file = pyarrow.parquet.ParquetFile(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{path} is no parquet file, or is damaged ({error})") from None
    with file:
        for place, fields in parquet_rows(file, str(path), skipped):
            yield place, {name: value for name, value in fields.items() if value is not None}


def _whole(parsed: list[tuple[str, LazyRecord]], skipped: SkippedRecords) -> list[LazyRecord]:
    """The records whose images can be read, each id once; the others go to ``skipped``."""
    problems = image_problems(image for _, record in parsed for image in record.images.values())
    found: dict[str, LazyRecord] = {}
    for place, record in parsed:
        wrong = [
            f"cannot read {name}_image{f' {source}' if isinstance(source, Path) else ''}: {problem}"
            for name, source in record.images.items()
            if (problem := problems[source])
        ]
        if wrong:
            skipped.add(place, wrong[0])
        elif record.id in found:
            skipped.add(place, f"its id comes twice ({record.id!r})")
        else:
            found[record.id] = record
    return list(found.values())


def _parse(fields: dict[str, Any], place: str, folder: Path, labelled: bool, ends: bool) -> LazyRecord:
    """A record; ``labelled``: it needs an action, ``ends``: it needs a state after."""
    before = _state(fields, "before", folder)
    known = ends or any(fields.get(name) is not None for name in ("after", "after_image"))
    after = _state(fields, "after", folder) if known else None
    action = fields.pop("action", None)
    if ends and not labelled and not (isinstance(action, str) and action.strip()):
        action = None  # of state-only pairs it is ignored, whatever it is
    if action is not None and not (isinstance(action, str) and action.strip()):
        raise BrokenRecord(f"action must be a text that is not empty, got {action!r}")
    if labelled and action is None:
        raise BrokenRecord("no action, and this split is labelled")
    name = fields.pop("id", None)
    if isinstance(name, list | dict | bool) or name == "":
        raise BrokenRecord(f"id must be a text that is not empty or a number, got {str(name)[:60]!r}")
    # the folder is no part of it: ids seed the rollouts, and the same file may lie elsewhere when a run goes on
    return LazyRecord(before, after, action, Path(place).name if name is None else str(name), fields)


def _state(fields: dict[str, Any], name: str, folder: Path) -> Source:
    there = sorted(field for field, value in fields.items() if value is not None)
    text, image = fields.pop(name, None), fields.pop(f"{name}_image", None)
    if (text is None) == (image is None):
        raise BrokenRecord(f"needs one of {name} and {name}_image (it has {', '.join(there)[:200] or 'no fields'})")
    if image is None:
        if not isinstance(text, str) or not text.strip():
            raise BrokenRecord(f"{name} must be a text that is not empty, got {repr(text)[:60]}")
        return text
    if isinstance(image, dict):
        image = image.get("bytes") or image.get("path")
    if not isinstance(image, str | bytes) or not image.strip():
        raise BrokenRecord(f"{name}_image must be the name of a file or its bytes, got {repr(image)[:60]}")
    return image if isinstance(image, bytes) else folder / image
