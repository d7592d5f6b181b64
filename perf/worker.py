"""One measurement in a process of its own: ``python -m perf.worker JOB.json RESULT.json``."""

from __future__ import annotations

import json
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from perf.common import Case

METHODS = {"ours": "perf.ours", "plain": "perf.plain", "trl": "perf.grpo_trl"}


def work(job: dict[str, Any]) -> dict[str, Any]:
    """Run the steps of a method.

    Args:
        job: ``method``, ``case`` (its fields), ``folder`` of the base, ``device``, ``threads``, ``profile``.

    Returns:
        ``peak`` in bytes, ``seconds`` by phase and part, ``operations`` by phase, and what a method adds.
    """
    torch.set_num_threads(job["threads"])
    method = import_module(METHODS[job["method"]])
    rounds = 2 if job["device"] == "cuda" else 1  # the first round on a GPU builds kernels
    meter, extra = method.run(Case(**job["case"]), Path(job["folder"]), job["device"], rounds, job["profile"])
    return {"peak": meter.peak(), "seconds": meter.seconds, "operations": meter.operations, **extra}


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(json.dumps(work(json.loads(Path(sys.argv[1]).read_text()))))
