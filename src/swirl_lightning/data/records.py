"""Your own transitions, from JSON lines or parquet."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

from swirl_lightning.data.images import PictureSource, open_rgb, picture_problem
from swirl_lightning.data.module import Split, TransitionDataModule
from swirl_lightning.data.reading import BrokenRecord, BrokenRecords, lines, parse_object
from swirl_lightning.transition import State, Transition


class JSONLTransitions(TransitionDataModule):
    """Transitions from JSON lines or parquet files, one file per split.

    A line is an object with ``before`` and ``after`` (text), or ``before_image`` and ``after_image``
    (picture files, relative to the JSON lines file), with ``action`` where the split is labelled, and with
    ``id`` if you like. Other fields end up in ``Transition.meta``::

        {"before_image": "frames/0.png", "after_image": "frames/1.png", "action": "turn left"}

    A parquet file has the same names as columns; its pictures may also be stored in it, as bytes or as the hub's
    ``{bytes, path}``. Files are read line by line; pictures are checked at the start and opened when they are needed.

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
        ImportError: a parquet file, and no ``pyarrow``.
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
        found: list[_Record] = []
        broken = BrokenRecords(self.paths[split], self.strict)
        for place, fields in _rows(self.paths[split], broken):
            try:
                found.append(_parse(fields, place, self.paths[split].parent, labelled=split != "state_only"))
            except BrokenRecord as error:
                broken.add(place, error)
        self.skipped[split] = len(broken)
        broken.report(len(found))
        return _Records(found)


_Source = str | PictureSource
"""A text, or a picture that is not open yet."""


class _Record:
    """A parsed line; its pictures are not open yet."""

    __slots__ = ("action", "after", "before", "id", "meta")

    def __init__(self, before: _Source, after: _Source, action: str | None, name: str, meta: dict) -> None:
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


def _rows(path: Path, broken: BrokenRecords) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, fields) of every record that can be read."""
    if path.suffix != ".parquet":
        for place, line in lines(path):
            try:
                yield place, parse_object(line)
            except BrokenRecord as error:
                broken.add(place, error)
        return
    try:
        import pyarrow
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise ImportError(f"{path} is read with pyarrow: pip install swirl-lightning[bytemorph]") from error
    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=64):
                for fields in batch.to_pylist():
                    yield f"{path}[{number}]", {name: value for name, value in fields.items() if value is not None}
                    number += 1
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        broken.add(f"{path}[{number}]", f"nothing is read from here on ({error})")


def _parse(fields: dict[str, Any], place: str, folder: Path, labelled: bool) -> _Record:
    before, after = (_state(fields, name, folder) for name in ("before", "after"))
    action = fields.pop("action", None)
    if action is not None and not (isinstance(action, str) and action.strip()):
        raise BrokenRecord(f"action must be a text that is not empty, got {action!r}")
    if labelled and action is None:
        raise BrokenRecord("no action, and this split is labelled")
    return _Record(before, after, action, str(fields.pop("id", place)), fields)


def _state(fields: dict[str, Any], name: str, folder: Path) -> _Source:
    text, image = fields.pop(name, None), fields.pop(f"{name}_image", None)
    if (text is None) == (image is None):
        raise BrokenRecord(f"needs one of {name} and {name}_image")
    if isinstance(image, dict):
        image = image.get("bytes") or image.get("path")
    value = text if image is None else image
    if not isinstance(value, str | bytes if image is not None else str) or not value:
        raise BrokenRecord(f"{name} must be a text that is not empty, got {str(value)[:60]!r}")
    if image is None:
        return str(value)
    source = value if isinstance(value, bytes) else folder / value
    if problem := picture_problem(source, decode=False):
        where = f" {source}" if isinstance(source, Path) else ""
        raise BrokenRecord(f"cannot read {name}_image{where}: {problem}")
    return source


def _open(state: _Source) -> State:
    return state if isinstance(state, str) else open_rgb(state)
