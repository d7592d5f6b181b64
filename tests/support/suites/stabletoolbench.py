"""Records of StableToolBench in the format of MirrorAPI."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def mirror(number: int, error: str = "", **changes: Any) -> dict[str, Any]:
    """A record in the format of MirrorAPI."""
    return {
        "system": "Imagine that you are an API.",
        "instruction": f"API doc:\n{{'api_name': 'a{number}'}}\n\nRequest:\n{{'q': {number}}}",
        "output": json.dumps({"error": error, "response": {"n": number}}),
        **changes,
    }


def write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
