"""Reading of data files record by record: a broken record is skipped, named and counted."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

from swirl_lightning.console.run import printable

SHOWN = 10
DEEPEST = 100
"""Levels of lists and objects within each other in a record; copying or printing more may fail."""

LONGEST_TEXT = 10_000_000
"""Characters of a text in a record; a compressed file of a few kilobytes can hold one that fills the memory."""

_TOO_DEEP = f"nested deeper than {DEEPEST} levels"
_LONGEST = 500  # characters of a message about a record
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_BRACKETS = re.compile(r'"(?:[^"\\]++|\\.)*+"|["\[\]{}]', re.DOTALL)


class BrokenRecord(Exception):
    """Error of a record that is no transition; its text gives the reason."""


def row_or_skipped(part: Any, number: int, place: str, skipped: SkippedRecords) -> dict[str, Any] | None:
    """Return a row of a pyarrow table or batch as Python's values; None if it cannot be, and goes to ``skipped``."""
    try:
        return _python_row(part, number)
    except BrokenRecord as error:
        skipped.add(place, error)
        return None


def _python_row(part: Any, number: int) -> dict[str, Any]:
    """Return a row of a pyarrow table or batch as Python's values.

    Raises:
        BrokenRecord: Python has none for one of them.
    """
    try:
        (row,) = part.slice(number, 1).to_pylist()
    except UnicodeDecodeError as error:
        raise BrokenRecord(f"not UTF-8 ({error})") from None
    except (ValueError, OverflowError) as error:  # a time that Python's cannot be, say
        raise BrokenRecord(f"holds what Python cannot ({error})") from None
    if long := [name for name, value in row.items() if isinstance(value, str) and len(value) > LONGEST_TEXT]:
        raise BrokenRecord(f"a text is longer than {LONGEST_TEXT:,} characters ({long[0]})")
    return dict(row)


@dataclass
class SkippedRecords:
    """Records of one source that cannot be used: all are counted, the first ten named.

    Attributes:
        source: name of the source, for messages.
        messages: place and reason of each, or of several that are lost together.
        kinds: how many for each kind of reason (``missing``, ``not JSON``, ...).
    """

    source: str | Path
    messages: list[str] = field(default_factory=list)
    kinds: Counter[str] = field(default_factory=Counter)

    def __len__(self) -> int:
        return self.kinds.total()

    def add(self, place: str, reason: object, count: int = 1) -> None:
        """Count a record, or several, given the place and the reason why it cannot be used.

        The kind is the reason without what differs from record to record: brackets, ``, got ...`` and ``...: ``.
        """
        self.messages.append(_one_line(f"{place}: {reason}", _LONGEST))
        self.kinds[str(reason).split(" (")[0].split(", got ")[0].split(": ")[-1]] += count

    def counts(self, used: int) -> dict[str, int]:
        """Return counts for results: records, used, skipped, and skipped by kind."""
        found = {"records": used + len(self), "used": used, "skipped": len(self)}
        return found | {f"skipped: {kind}": n for kind, n in sorted(self.kinds.items())}

    def report(self, used: int, strict: bool = False) -> None:
        """Warn of the skipped records, if there are any.

        Args:
            used: number of records that can be used.
            strict: raise instead.

        Raises:
            ValueError: records were skipped, and ``strict`` is set or none can be used.
        """
        if not self.messages:
            return
        kinds = ", ".join(f"{n} {kind}" for kind, n in self.kinds.most_common(SHOWN))
        count = f"{len(self)} of {used + len(self)}"
        message = f"{self.source}: {count} records cannot be used ({kinds}):{first(self.messages)}"
        if strict or not used:
            raise ValueError(message)
        # here: a mistyped command need not wait for it
        from lightning.pytorch.utilities.rank_zero import rank_zero_warn

        rank_zero_warn(message)


def first(messages: list[str]) -> str:
    """List the first ten of many, one a line, and the number of the others."""
    more = [f"and {len(messages) - SHOWN} more"] if len(messages) > SHOWN else []
    return "".join(f"\n  {message}" for message in messages[:SHOWN] + more)


def _one_line(text: str, longest: int) -> str:
    """A text from a data file on one line, cut."""
    line = printable(text[: longest + 1])
    return line if len(line) <= longest else line[: longest - 1] + "…"


def require_files(paths: Iterable[Path], cure: str) -> None:
    """Check that all files exist.

    Args:
        paths: files that are needed.
        cure: where to get it, for the message.

    Raises:
        FileNotFoundError: with the number of those missing and the first ten.
    """
    wanted = list(paths)
    missing = [str(path) for path in wanted if not path.exists()]
    if missing:
        raise FileNotFoundError(f"{len(missing)} of {len(wanted)} files are missing:{first(missing)}\n{cure}")


def stays_inside(name: str) -> bool:
    """Tell whether a file's name in a record stays in its folder. Links in that folder are followed."""
    return bool(name) and "\0" not in name and not PurePath(name).anchor and ".." not in PurePath(name).parts


def read_settings(path: Path) -> dict[str, Any]:
    """Read the settings that a folder was made with.

    Raises:
        ValueError: the file is no JSON object.
    """
    try:
        found = parse_object(path.read_text(encoding="utf-8"))
    except (BrokenRecord, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is damaged: {error}; take another folder, or remove this one") from None
    return found


def lines(path: Path) -> Iterator[tuple[str, str]]:
    """Yield (file:number, line) of every line that is not blank; bytes that are no UTF-8 become surrogates.

    Raises:
        ValueError: the file is UTF-16, or one JSON list.
    """
    with open(path, encoding="utf-8-sig", errors="surrogateescape") as file:
        for number, line in enumerate(file, start=1):
            if number == 1 and line.startswith(("\udcff\udcfe", "\udcfe\udcff")):
                raise ValueError(f"{path} is UTF-16: save it as UTF-8")
            if number == 1 and (line.strip() == "[" or "".join(line.split()).startswith("[{")):
                raise ValueError(f"{path} is one JSON list: write an object a line, without brackets and commas around")
            if line.strip():
                yield f"{path}:{number}", line


def parse_json(text: str) -> Any:
    """Parse JSON from a data file.

    Raises:
        BrokenRecord: see `check_values`.
        ValueError: it is no JSON, or held bytes that are no UTF-8.
    """
    text.encode()  # fails on surrogates
    try:
        found = json.loads(text)
    except RecursionError:
        raise BrokenRecord(_TOO_DEEP) from None
    if text.count("[") + text.count("{") > DEEPEST or _SURROGATE.search(text):
        check_values(found)
    return found


def shallow(text: str) -> str:
    """Return JSON in which a list or object at twice `DEEPEST` levels is an empty list.

    `check_values` refuses what holds it all the same, and json, which reads no more levels than Python's stack has, can
    read what stands beside it.
    """
    parts, done, depth, start = [], 0, 0, 0
    for match in _BRACKETS.finditer(text):
        if match[0] in ("[", "{"):
            depth += 1
            start = match.start() if depth == 2 * DEEPEST else start
        elif match[0] in ("]", "}"):
            depth -= 1
            if depth == 2 * DEEPEST - 1:
                parts += [text[done:start], "[]"]
                done = match.end()
    return "".join([*parts, text[done:]])


def check_values(found: Any) -> None:
    """Refuse values from JSON that fail later: where they are copied, hashed, or written.

    Raises:
        BrokenRecord: nested deeper than `DEEPEST`, or a text in it holds half of a surrogate pair.
    """
    parts = [(found, "a text", 0)]
    while parts:
        value, name, depth = parts.pop()
        if isinstance(value, str):
            encodable(value, name)
        elif isinstance(value, dict | list) and depth >= DEEPEST:
            raise BrokenRecord(_TOO_DEEP)
        elif isinstance(value, dict):
            parts += [(key, "the name of a field", depth) for key in value]
            parts += [(item, name if depth else key, depth + 1) for key, item in value.items()]
        elif isinstance(value, list):
            parts += [(item, name, depth + 1) for item in value]


def parse_object(text: str) -> dict[str, Any]:
    """Parse a JSON object.

    Raises:
        BrokenRecord: it is none, or held bytes that are no UTF-8; or as in `parse_json`.
    """
    try:
        fields = parse_json(text)
    except ValueError as error:
        raise BrokenRecord(f"not JSON ({error})") from None
    if not isinstance(fields, dict):
        raise BrokenRecord(f"an object is needed, got {type(fields).__name__}")
    return fields


def records(path: Path, skipped: SkippedRecords) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (place, object) of every readable record of a ``.jsonl`` file, or of a ``.json`` file with a list.

    In a list, too, a broken record costs itself alone where its brackets match. Where the list is cut short, what comes
    before the cut is read, and the cut is one skipped record.
    """
    for place, text in lines(path) if path.suffix == ".jsonl" else _items(path, skipped):
        try:
            yield place, parse_object(text)
        except BrokenRecord as error:
            skipped.add(place, error)


def _items(path: Path, skipped: SkippedRecords) -> Iterator[tuple[str, str]]:
    """(file[number], text) of the items of a JSON list."""
    text = path.read_text(encoding="utf-8-sig", errors="surrogateescape")
    place = _skip(text, 0)
    if text[place : place + 1] != "[":
        skipped.add(str(path), "a JSON list is needed")
        return
    place, number = _skip(text, place + 1), 0
    while text[place : place + 1] != "]":
        end = _end(text, place)
        if end is None:
            skipped.add(f"{path}[{number}]", f"not JSON, nothing is read from here on ({text[place : place + 60]!r})")
            return
        yield f"{path}[{number}]", text[place:end]
        number += 1
        place = _skip(text, end)
        if text[place : place + 1] == ",":
            place = _skip(text, place + 1)
        elif text[place : place + 1] != "]":
            skipped.add(f"{path}[{number}]", "the list is cut short, nothing is read from here on")
            return
    if rest := text[place + 1 :].strip():
        skipped.add(str(path), f"text after the list, which is not read ({rest[:60]!r})")


def _end(text: str, place: int) -> int | None:
    """Find the end of an item of a list, None if that cannot be told.

    Of an object or list by its brackets: so the items behind one that is no JSON can be read. (json's own errors count
    the lines before them, which takes a time that grows with the file.)
    """
    if not text.startswith(("[", "{"), place):
        try:
            return json.JSONDecoder().raw_decode(text, place)[1]
        except ValueError:
            return None
    depth = 0
    for match in _BRACKETS.finditer(text, place):
        if match[0] == '"':  # without an end: what was taken for texts before may have been none
            return None
        depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(match[0], 0)
        if depth == 0:
            return match.end() if match.end() < len(text) else None  # the list's own end was taken for the item's
    return None


def _skip(text: str, place: int) -> int:
    """Return the next index without white space."""
    while text[place : place + 1].isspace():
        place += 1
    return place


def text_field(fields: Mapping[str, Any], name: str, *, empty: bool = False) -> str:
    """Return a text of a record.

    Raises:
        BrokenRecord: it is missing, no text, blank (unless ``empty``), or half of a surrogate pair.
    """
    value = fields.get(name)
    if not isinstance(value, str) or not (empty or value.strip()):
        raise BrokenRecord(f"{name} must be a text that is not empty, got {str(value)[:60]!r}")
    return encodable(value, name)


def encodable(text: str, name: str) -> str:
    """Return the text of a field.

    Raises:
        BrokenRecord: it holds half of a surrogate pair, as JSON's escapes may: it cannot be hashed or written.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        raise BrokenRecord(f"{name} holds half of a surrogate pair") from None
    return text
