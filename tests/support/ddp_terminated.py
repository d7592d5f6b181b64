"""Two ranks, of which one gets SIGTERM in the validation. Run by tests/perf/test_soak.py."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path

import torch
from perf.attempt import Attempt
from perf.common import build_base
from perf.parts import CASE
from perf.soak import write_config


def main(out: Path) -> None:
    """Write what became of the ranks, and of which weights the checkpoint is, to ``told.json``."""
    torch.set_num_threads(1)
    sys.argv = ["swirl"]
    build_base(CASE, out / "base")
    config = write_config(out, out / "base", "two ranks")
    run = Attempt(config, 2, resume=False)
    while not run.seen["validation"]:
        assert run.poll(1.0), (out / "log.txt").read_text()
    run.kill(signal.SIGTERM, [1])
    late = run.end(120.0)
    saved = torch.load(out / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    told = {"late": late, "codes": sorted(run.codes.values()), "label": saved["swirl"]["label"]}
    (out / "told.json").write_text(json.dumps(told))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
