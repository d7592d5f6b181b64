"""StableToolBench: the responses of thousands of APIs as a world (Guo et al. 2024 and 2025, THUNLP-MT).

Record formats: MirrorAPI-Bench and MirrorAPI-Training (``system, instruction, output``), and calls from runs of
the benchmark (``query, action, action_input, observation``) with its query files.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from swirl_lightning.benchmarks.text_suite import Part, TextSuite
from swirl_lightning.data.reading import (
    BrokenRecord,
    SkippedRecords,
    parse_json,
    records,
    require_files,
    text_field,
)
from swirl_lightning.transition import Transition

TEST_FILES = {
    "ID-high": "test_sft/id_high.json",
    "ID-low": "test_sft/id_low.json",
    "ID-medium": "test_sft/id_medium.json",
    "OOD": "test_sft/ood.json",
    "OOD-fail": "test_sft/ood_failure.json",
}
"""Files of MirrorAPI-Bench."""
TRAIN_FILES = ("train_sft.json",)
"""Files of MirrorAPI-Training."""
_MOST_CALLS = 200
"""Of a run, each of which holds all before it; real ones have some dozens."""


class StableToolBench(TextSuite):
    r"""API calls and their responses.

    x is the documentation of the API (of all the query's APIs, for calls) and the conversation so far, z is the
    call, y is ``ERROR: {error}\nRESPONSE: {response}``. ``data_dir`` holds the files of MirrorAPI-Bench
    (``test_sft/id_high.json``, ...) and MirrorAPI-Training (``train_sft.json``), ``.json`` with a list or
    ``.jsonl``. Metrics are given for each test split; the overall value is the mean over splits, as in the
    paper. ``bleu_char`` is the official one. Validation records come from the training records.

    Args:
        data_dir: as above.
        test_splits: names of the test splits to use, a choice of the keys of ``test_files``; None for all.
        test_files: the file of each test split, relative to ``data_dir``.
        train_files: the training files, relative to ``data_dir``.
        query_files: lists of queries with their ``api_list``, relative to ``data_dir``: the documentation of
            calls. Records of MirrorAPI bring their own.
        kwargs: as for `TextSuite`.
    """

    suite = "StableToolBench"
    source = (
        "get the files from https://huggingface.co/datasets/stabletoolbench/MirrorAPI-Bench and "
        ".../stabletoolbench/MirrorAPI-Training, or name your own in test_files and train_files"
    )
    validation_is_official = False

    def __init__(
        self,
        data_dir: str,
        *,
        test_splits: Sequence[str] | None = None,
        test_files: dict[str, str] | None = None,
        train_files: Sequence[str] = TRAIN_FILES,
        query_files: Sequence[str] = (),
        **kwargs: Any,
    ) -> None:
        super().__init__(data_dir, **kwargs)
        known = dict(TEST_FILES) if test_files is None else test_files
        unknown = sorted(set(test_splits or ()) - set(known))
        if unknown:
            raise ValueError(f"unknown StableToolBench test splits {unknown}; choose from {list(known)}")
        self.test_files = {name: path for name, path in known.items() if test_splits is None or name in test_splits}
        self.train_files, self.query_files = tuple(train_files), tuple(query_files)

    def files(self, part: Part) -> Sequence[Path]:
        """Return the files of a part, and the query files."""
        names = self.test_files.values() if part == "test" else self.train_files
        return [self.data_dir / name for name in (*names, *self.query_files)]

    def check(self) -> None:
        """Check that the query files exist, which every command needs."""
        require_files([self.data_dir / name for name in self.query_files], self.source)

    def read(self, part: Part) -> list[Transition]:
        """Read all records of a part."""
        skipped = SkippedRecords(f"StableToolBench's {part} files")
        documentation = self._documentation(skipped)
        files = self.test_files if part == "test" else {name: name for name in self.train_files}
        rows: list[Transition] = []
        for split, name in files.items():
            said: dict[str, list[str]] = defaultdict(list)
            for number, (place, fields) in enumerate(records(self.data_dir / name, skipped)):
                try:
                    row = _call(fields, documentation, said) if "action" in fields else _mirror(fields)
                except BrokenRecord as error:
                    skipped.add(place, error)
                    continue
                episode = str(row.meta.get("episode", number))
                meta = {**row.meta, "episode": f"{split}/{episode}", "split": split if part == "test" else part}
                rows.append(Transition(row.before, row.after, row.action, f"{split}/{number}", meta))
        self._count(part, skipped, len(rows))
        return rows

    def _documentation(self, skipped: SkippedRecords) -> dict[str, str]:
        """Read the APIs of each query."""
        found: dict[str, str] = {}
        for name in self.query_files:
            for place, fields in records(self.data_dir / name, skipped):
                apis = fields.get("api_list")
                if not isinstance(apis, list) or not all(isinstance(api, dict) for api in apis):
                    skipped.add(place, "api_list must be a list of objects")
                    continue
                query, briefs = str(fields.get("query")), "\n".join(json.dumps(_brief(api)) for api in apis)
                if found.setdefault(query, briefs) != briefs:
                    skipped.add(place, "the query has come before with other APIs, which count")
        return found

    def groups(self) -> dict[str, Any]:
        """Return arguments for means of each test split, and over them."""
        splits = [*self.test_files, "train"]  # validation rows are training rows
        return {"group_by": "split", "categories": {split: split for split in splits}, "macro": True}


def response(error: object, answer: object) -> str:
    """Write y of a call in the benchmark's format; what is no text as JSON."""
    error, answer = (
        each if isinstance(each, str) else json.dumps(each, ensure_ascii=False) for each in (error, answer)
    )
    return f"ERROR: {error}\nRESPONSE: {answer}"


def _mirror(fields: Mapping[str, Any]) -> Transition:
    """Parse a record of MirrorAPI: ``instruction`` is ``API doc: ... Request: ...``, ``output`` a JSON object."""
    instruction = text_field(fields, "instruction")
    lines = instruction.split("\n")
    places = [place for place, line in enumerate(lines[1:-1], 1) if line.strip() == "Request:"]
    if not places:
        raise BrokenRecord("instruction has no line 'Request:'")
    documentation, action = ("\n".join(part).strip() for part in (lines[: places[-1]], lines[places[-1] + 1 :]))
    if not action:
        raise BrokenRecord("the request is empty")
    return Transition(documentation, _answer(fields, "output"), action)


def _call(fields: Mapping[str, Any], documentation: Mapping[str, str], said: dict[str, list[str]]) -> Transition:
    """Parse a call of a run; earlier calls of the same run are its conversation."""
    query = text_field(fields, "query")
    episode = str(fields.get("file") or query)
    action = f"{text_field(fields, 'action')} {_compact(fields.get('action_input'))}"
    after = _answer(fields, "observation")
    apis = [f"APIs:\n{documentation[query]}"] if query in documentation else []
    earlier = said[episode]
    if len(earlier) == _MOST_CALLS:  # each holds all before it
        raise BrokenRecord(f"its run {episode[:80]!r} has more than {_MOST_CALLS} calls")
    before = "\n\n".join([*apis, f"Query: {query}", *earlier])
    said[episode] = [*earlier, f"Call: {action}\n{after}"]
    return Transition(before, after, action, meta={"episode": episode})


def _answer(fields: Mapping[str, Any], name: str) -> str:
    """Read ``error`` and ``response`` from a JSON object in a text, even if it is cut short."""
    text = text_field(fields, name)
    try:
        found = parse_json(text)
    except ValueError:
        match = re.match(r'\s*\{\s*"error":\s*"((?:[^"\\]|\\.)*)",\s*"response":\s*(.*)', text, re.DOTALL)
        if match is None:
            raise BrokenRecord(f"{name} is no object with error and response: {text[:80]!r}") from None
        return response(*map(_unescaped, (f'"{match[1]}', match[2])))
    if not isinstance(found, dict) or not {"error", "response"} <= set(found):
        raise BrokenRecord(f"{name} is no object with error and response: {text[:80]!r}")
    return response(found["error"], found["response"])


_ESCAPES = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", '"': '"', "\\": "\\", "/": "/"}


def _unescaped(cut: str) -> str:
    """What JSON that is cut short would be whole: of a text its words so far, of anything else what is written.

    Escapes that JSON does not have, for which it may not have been read either, stay as they are.
    """
    text = re.match(r'"((?:[^"\\]|\\.)*)', cut, re.DOTALL)
    if text is None:
        return cut
    whole = re.sub(r"\\u[0-9a-fA-F]{0,3}$", "", text[1])
    words = re.sub(
        r"\\(?:u([0-9a-fA-F]{4})|(.))",
        lambda found: chr(int(found[1], 16)) if found[1] else _ESCAPES.get(found[2], found[0]),
        whole,
        flags=re.DOTALL,
    )
    # halves of a pair are joined, and one whose other half was cut off goes
    return words.encode("utf-16", "surrogatepass").decode("utf-16", "ignore")


def _compact(value: object) -> str:
    """Write the arguments of a call on one line."""
    if isinstance(value, str):
        try:
            value = parse_json(value)
        except ValueError:
            return " ".join(str(value).split())
    return json.dumps(value, ensure_ascii=False)


def _brief(api: Mapping[str, Any]) -> dict[str, Any]:
    """Return the documentation of an API, without the example of its response."""
    named = ("category_name", "tool_name", "api_name", "api_description", "method")
    return {name: api[name] for name in (*named, "required_parameters", "optional_parameters") if name in api}
