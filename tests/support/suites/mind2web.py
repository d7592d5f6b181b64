"""Small Mind2Web tasks in the official layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def page(text: str, rows: int = 3) -> str:
    items = "".join(f'<li backend_node_id="{n}">item {n}</li>' for n in range(rows))
    return f'<html backend_node_id="9"><body><ul>{items}</ul><p id="x">{text}</p></body></html>'


def task(name: str, steps: int = 3, website: str = "shop") -> dict[str, Any]:
    return {
        "annotation_id": name,
        "website": website,
        "domain": "Shopping",
        "subdomain": "General",
        "confirmed_task": "buy it",
        "action_reprs": [f"[button]  b{n} -> CLICK" for n in range(steps)],
        "actions": [{"action_uid": f"{name}{n}", "cleaned_html": page(f"{name} {n}")} for n in range(steps)],
    }


def write(path: Path, tasks: list[Any] | str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = tasks if isinstance(tasks, str | bytes) else json.dumps(tasks)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path
