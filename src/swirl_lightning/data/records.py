"""Your own transitions, from JSON lines."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from PIL import Image

from swirl_lightning.data.module import Split, TransitionDataModule
from swirl_lightning.data.reading import BrokenRecord, BrokenRecords, lines, parse_object
from swirl_lightning.transition import State, Transition


class JSONLTransitions(TransitionDataModule):
    """Transitions from JSON lines files, one file per split.

    A line is an object with ``before`` and ``after`` (text), or ``before_image`` and ``after_image``
    (picture files, relative to the JSON lines file), with ``action`` where the split is labelled, and with
    ``id`` if you like. Other fields end up in ``Transition.meta``::

        {"before_image": "frames/0.png", "after_image": "frames/1.png", "action": "turn left"}

    Files are read line by line; pictures are checked at the start and opened when they are needed.

    Args:
        warmup: file of labelled transitions.
        state_only: file of pairs; actions in it are ignored.
        validation: labelled file for validation.
        test: labelled file for test and prediction.
        strict: raise on the first broken record; otherwise it is skipped, counted in :attr:`skipped`, and
            the first ten are reported.
        kwargs: see `TransitionDataModule`.

    Raises:
        FileNotFoundError: a named file does not exist.
        ValueError: ``strict`` and a broken record, or a split without any record.
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
        self.skipped: dict[str, int] = {}
        """Number of broken records in each split read so far."""

    def check(self) -> None:
        """Every named file exists."""
        missing = [f"{name}: {path}" for name, path in self.paths.items() if not path.is_file()]
        if missing:
            raise FileNotFoundError(f"no such file: {'; '.join(missing)}")

    def load_split(self, split: Split) -> Sequence[Transition]:
        """Reads a split's file."""
        if split not in self.paths:
            raise ValueError(
                f"no file is given for the split {split!r}; set it in data.init_args "
                f"(given: {sorted(self.paths)} of {list(get_args(Split))})"
            )
        records: list[_Record] = []
        broken = BrokenRecords(self.paths[split], self.strict)
        for place, line in lines(self.paths[split]):
            try:
                records.append(_parse(line, place, labelled=split != "state_only"))
            except BrokenRecord as error:
                broken.add(place, error)
        self.skipped[split] = len(broken)
        broken.report(len(records))
        return _Records(records)


class _Record:
    """A parsed line; its pictures are still files."""

    __slots__ = ("action", "after", "before", "id", "meta")

    def __init__(self, before: str | Path, after: str | Path, action: str | None, name: str, meta: dict) -> None:
        self.before, self.after, self.action, self.id, self.meta = before, after, action, name, meta


class _Records(Sequence[Transition]):
    """Opens a record's pictures when it is asked for."""

    def __init__(self, records: list[_Record]) -> None:
        self._records = records

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Transition:  # type: ignore[override]
        record = self._records[index]
        return Transition(_open(record.before), _open(record.after), record.action, record.id, record.meta)


def _parse(line: str, place: str, labelled: bool) -> _Record:
    fields = parse_object(line)
    folder = Path(place.rpartition(":")[0]).parent
    before, after = (_state(fields, name, folder) for name in ("before", "after"))
    action = fields.pop("action", None)
    if action is not None and not (isinstance(action, str) and action.strip()):
        raise BrokenRecord(f"action must be a text that is not empty, got {action!r}")
    if labelled and action is None:
        raise BrokenRecord("no action, and this split is labelled")
    return _Record(before, after, action, str(fields.pop("id", place)), fields)


def _state(fields: dict[str, Any], name: str, folder: Path) -> str | Path:
    text, image = fields.pop(name, None), fields.pop(f"{name}_image", None)
    if (text is None) == (image is None):
        raise BrokenRecord(f"needs one of {name} and {name}_image")
    value = text if image is None else image
    if not isinstance(value, str) or not value:
        raise BrokenRecord(f"{name} must be a text that is not empty, got {value!r}")
    if image is None:
        return value
    path = folder / image
    try:
        with Image.open(path) as picture:
            picture.verify()  # reads the headers, decodes nothing
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise BrokenRecord(f"cannot read {name}_image {path} ({error})") from None
    return path


def _open(state: str | os.PathLike[str]) -> State:
    if isinstance(state, str):
        return state
    try:
        with Image.open(state) as picture:
            return picture.convert("RGB")
    except OSError as error:  # cut short, for example; PIL does not say which file
        raise OSError(f"cannot read the picture {state}: {error}") from error
