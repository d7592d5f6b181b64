"""The ``swirl`` command: sets the process up before anything makes a tensor, then hands over to the CLI."""

from __future__ import annotations

import os

HUGE_PAGES = "THP_MEM_ALLOC_ENABLE"
"""PyTorch's own switch, which it reads once, when the first tensor is made: large tensors in pages of 2 MiB."""


def main(args: list[str] | None = None) -> None:
    """Entry point of the console script."""
    os.environ.setdefault(HUGE_PAGES, "1")  # blocks that are mapped anew each time cost a fault a page
    from swirl_lightning.cli import main as run  # only now: importing torch's users may make tensors

    run(args)


if __name__ == "__main__":
    main()
