"""Store of generations on disk, so that an evaluation that is started again repeats none of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from swirl_lightning.engine.grammar import TokenIds
from swirl_lightning.files.hashes import content_key
from swirl_lightning.files.writing import append_lines


class GenerationStore:
    """Store of sampled token ids, keyed by all that they depend on.

    A key covers the settings (weights, sampling, seed, ...), the role, the mode, the record's id and the
    prompt's ids. So a changed record, adapter or option is generated anew, and nothing else is. Each
    process appends to a file of its own and reads those of all; a line cut short by a kill is ignored.

    Args:
        folder: of the files; it is made at the first write.
        settings: values that every generation depends on besides its own prompt; JSON values.
        rank: of this process.
    """

    def __init__(self, folder: str | Path, settings: dict[str, Any], rank: int = 0) -> None:
        self.folder = Path(folder)
        self.fingerprint = content_key(json.dumps(settings, sort_keys=True, default=str).encode())
        self._path = self.folder / f"generated-rank{rank}.jsonl"
        self._known: dict[str, list[TokenIds]] = {}
        for path in sorted(self.folder.glob("generated-rank*.jsonl")):
            with open(path, encoding="utf-8", errors="replace") as file:
                for line in file:
                    try:
                        entry = json.loads(line)
                        if _are_ids(entry["ids"]):
                            self._known[entry["key"]] = entry["ids"]
                    except (ValueError, KeyError, TypeError, RecursionError):
                        continue  # cut short or damaged

    def key(self, role: str, mode: str, record: str, count: int, prompt: TokenIds) -> str:
        """Return the key of one generation: ``count`` samples for one prompt."""
        prompt_digest = content_key(",".join(map(str, prompt)).encode())
        return content_key("|".join((self.fingerprint, role, mode, record, str(count), prompt_digest)).encode())

    def get(self, key: str, count: int) -> list[TokenIds] | None:
        """Return the ``count`` samples of a key, or None."""
        found = self._known.get(key)
        return found if found is not None and len(found) == count else None

    def put(self, keys: Sequence[str], samples: Sequence[list[TokenIds]]) -> None:
        """Write samples at once; the run that makes them asks for none of them again."""
        if not keys:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        lines = (json.dumps({"key": key, "ids": ids}) for key, ids in zip(keys, samples, strict=True))
        append_lines(self._path, lines)


def _are_ids(samples: Any) -> bool:
    return isinstance(samples, list) and all(
        isinstance(ids, list) and all(type(number) is int and 0 <= number < 2**31 for number in ids) for ids in samples
    )
