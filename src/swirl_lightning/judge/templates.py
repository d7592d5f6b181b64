"""Questions to the judge, read from files: wording, the states that are shown, and the scale of the answers."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from swirl_lightning.files.hashes import digest
from swirl_lightning.files.safe_yaml import load

BUILTIN = Path(__file__).parents[1] / "assets" / "judge"
"""Folder of our own wordings: ``action`` is for inverse dynamics, ``quality`` for images, the others are for suites."""

STATES = ("before", "after", "predicted")
SEVERAL: dict[str, Callable[[list[float]], float]] = {
    "first": lambda scores: scores[0],
    "last": lambda scores: scores[-1],
    "min": min,
}
"""Ways to make one score of several."""
_LONGEST = 20_000  # characters of an answer that are read, its last ones


@dataclass(frozen=True)
class JudgeTemplate:
    """Question to the judge.

    Attributes:
        name: of the file, or of our own wording.
        text: with ``{action}`` in braces, and ``{predicted}`` for a predicted action; other braces stand for
            themselves.
        states: the states that are shown after the text, in this order: ``before``, ``after``, ``predicted``.
        low: the worst score.
        high: the best score.
        system: text of a system message before the question; none if empty.
        several: which score counts where an answer has several: ``first``, ``last`` or ``min``.
        placeholder: what else in the text stands for the action, as ``<instruction>``; nothing if empty.
        paper: this is the wording under which the numbers of the paper were made.
        source: where the wording comes from, for reports.
    """

    name: str
    text: str
    states: tuple[str, ...]
    low: float
    high: float
    system: str = ""
    several: str | None = None
    placeholder: str = ""
    paper: bool = False
    source: str = ""

    @property
    def digest(self) -> str:
        """Hash of all that the question and the reading of its answer consist of: 16 hexadecimal digits."""
        asked = [self.system, self.text, self.states, self.low, self.high, self.several]
        asked += [self.placeholder] if self.placeholder else []
        return digest(json.dumps(asked).encode())

    def facts(self) -> dict[str, Any]:
        """Return what ``results.json`` tells of the template."""
        return {"name": self.name, "hash": self.digest, "paper": self.paper, "source": self.source}

    def fill(self, **words: str) -> str:
        """Return the text with ``action`` and ``predicted`` in the place of their braces."""
        places = {"{action}": "action", "{predicted}": "predicted"} | (
            {self.placeholder: "action"} if self.placeholder else {}
        )
        return re.sub("|".join(map(re.escape, places)), lambda place: words.get(places[place[0]], ""), self.text)

    def parse(self, answer: str) -> tuple[float | None, str | None]:
        """Read the score: (score, None), or (None, ``unparsable``) without a number in the scale.

        The score is read from the last JSON object with the key ``score`` in the answer: an earlier one may be quoted
        from what is judged. It is never clamped: a number outside the scale means that the question was not understood.
        """
        found = None
        for value in _values(answer[-_LONGEST:]):
            many = value if isinstance(value, list) and self.several else [value]
            scores = [score for each in many if (score := self._score(each)) is not None]
            if scores and len(scores) == len(many):
                found = SEVERAL[self.several or "first"](scores)
        return found, None if found is not None else "unparsable"

    def _score(self, value: Any) -> float | None:
        if isinstance(value, str):
            try:
                value = float(value)
            except ValueError:
                return None
        if isinstance(value, (int, float)) and not isinstance(value, bool) and self.low <= value <= self.high:
            return float(value)
        return None


def _values(text: str) -> Iterator[Any]:
    """Yield what the JSON objects in a text have as ``score``, in order."""
    decoder, place = json.JSONDecoder(strict=False), text.find("{")  # models write line breaks into strings
    while place >= 0:
        end = place + 1
        try:
            fields, after = decoder.raw_decode(text, place)
        except (ValueError, RecursionError):
            fields, after = {}, end
        named = {str(key).lower(): value for key, value in fields.items()}
        if "score" in named:
            yield named["score"]
            end = after
        place = text.find("{", end)


@cache
def builtin(name: str) -> JudgeTemplate:
    """Return one of our own wordings.

    AURORA, WorldPrediction and GEdit-Bench are judged without the reference, 0 to 10; ByteMorph with it, 0 to 100.

    Raises:
        ValueError: there is none of that name.
    """
    known = sorted(path.stem for path in BUILTIN.glob("*.yaml"))
    if name not in known:
        raise ValueError(f"no judge template {name!r}; there are {known}")
    return read_template(BUILTIN / f"{name}.yaml", f"swirl-lightning/{name}")


def read_template(path: Path, name: str = "") -> JudgeTemplate:
    """Read a template from YAML: the fields of :class:`JudgeTemplate`.

    ``text`` and ``system`` are a text, ``{file: ..., name: ...}`` for one that stands in another file, or a list of
    these, one below the other. A file is taken as it is; with ``name``, it is a Python file, and the text is the
    constant of that name, which is read and not run. Files are relative to the template's folder.

    Args:
        path: file of the template.
        name: for messages and reports; empty for the path.

    Raises:
        FileNotFoundError: it, or a file that it names, is not there.
        ValueError: a field is missing, unknown or of the wrong kind.
    """
    try:
        fields = load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no YAML: {error}") from None
    if not isinstance(fields, dict):
        raise ValueError(f"{path}: a judge template has fields, such as text, states, low and high")
    known = [field for field in JudgeTemplate.__dataclass_fields__ if field != "name"]
    if wrong := [field for field in fields if field not in known]:
        raise ValueError(f"{path}: no field {wrong[0]!r} in a judge template; there are {known}")
    if missing := [field for field in ("text", "states", "low", "high") if field not in fields]:
        raise ValueError(f"{path}: the judge template has no {missing[0]}")
    states, low, high = fields["states"], fields["low"], fields["high"]
    if not isinstance(states, list) or not states or any(state not in STATES for state in states):
        raise ValueError(f"{path}: states must be a list of some of {list(STATES)}, got {states!r}")
    if not all(type(end) in (int, float) and abs(end) < 2**63 for end in (low, high)) or not low < high:
        raise ValueError(f"{path}: low and high must be numbers, and low the smaller one, got {low!r} and {high!r}")
    several = fields.get("several")
    if several is not None and (not isinstance(several, str) or several not in SEVERAL):
        raise ValueError(f"{path}: several must be one of {list(SEVERAL)}, got {several!r}")
    text, system = (_text(fields[part], path, part) if part in fields else "" for part in ("text", "system"))
    placeholder, paper, source = (
        str(fields.get("placeholder", "")),
        fields.get("paper") is True,
        str(fields.get("source", "")),
    )
    if placeholder not in text:
        raise ValueError(f"{path}: the text has no placeholder {placeholder!r}")
    return JudgeTemplate(name or str(path), text, tuple(states), low, high, system, several, placeholder, paper, source)


def _text(given: Any, path: Path, part: str) -> str:
    if isinstance(given, list):
        return "\n".join(_text(each, path, part) for each in given)
    if isinstance(given, dict) and "file" in given and set(given) <= {"file", "name"}:
        file = path.parent / str(given["file"])
        content = file.read_text(encoding="utf-8")
        given = _constant(content, str(given["name"]), file) if "name" in given else content
    if not isinstance(given, str) or not given.strip():
        raise ValueError(f"{path}: {part} must be a text, {{file: ..., name: ...}}, or a list of these, got {given!r}")
    return given


def _constant(source: str, name: str, file: Path) -> str:
    """Return the text that is assigned to a name anywhere in Python source, without running it."""
    try:
        assigned = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Assign)]
    except (SyntaxError, ValueError, RecursionError) as error:
        raise ValueError(f"{file} is no Python: {error}") from None
    for node in assigned:
        value = node.value.value if isinstance(node.value, ast.Constant) else None
        if isinstance(value, str) and any(isinstance(t, ast.Name) and t.id == name for t in node.targets):
            return value
    raise ValueError(f"{file}: no text is assigned to {name}; copy the wording into the template instead")
