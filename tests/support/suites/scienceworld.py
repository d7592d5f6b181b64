"""Steps of ScienceWorld as its file holds them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from swirl_lightning.benchmarks.scienceworld import FILE


def step(task: str, variation: int, split: str, number: int) -> dict[str, Any]:
    return {
        "task": task,
        "variation": variation,
        "split": split,
        "step": number,
        "prev_obs": f"{task} {number}",
        "look_before": "This room is called the hall.\n",
        "inv_before": "In your inventory, you see:\n\ta cat\n",
        "action": f"wait{number}",
        "obs": f"{task} {number + 1}",
        "look_after": "This room is called the attic.\n",
        "inv_after": "In your inventory, you see:\n\ta cat\n",
    }


def write(folder: Path, rows: list[Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / FILE
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path
