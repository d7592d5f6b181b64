"""One node of ``torchrun``: ``python -m support.torchrun_agent NODE PORT MODEL OUT CASE...`` with two ranks.

The ranks are forked from this process, which has imported what they need, where torchrun starts each by a command.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

from torch.distributed.launcher.api import elastic_launch
from torch.distributed.run import config_from_args, get_args_parser

from support import ddp_run

NODES = RANKS = 2


def main(node: str, port: str, model: str, out: str, cases: list[str]) -> None:
    """Run the cases of :mod:`support.ddp_run` on this node's ranks."""
    options = [f"--nnodes={NODES}", f"--nproc_per_node={RANKS}", f"--node_rank={node}"]
    options += ["--master_addr=127.0.0.1", f"--master_port={port}", "ddp_run"]
    config, _, _ = config_from_args(get_args_parser().parse_args(options))
    elastic_launch(replace(config, start_method="fork"), ddp_run.main)(model, Path(out), RANKS, cases, NODES)


if __name__ == "__main__":
    main(*sys.argv[1:5], sys.argv[5:])
