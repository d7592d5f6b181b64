"""The published weights of Chameleon's and Liquid's VQGAN as safetensors, which are smaller and load faster.

    python -m swirl_lightning.prepare.vqgan FOLDER

writes ``vqgan.safetensors`` beside ``vqgan.ckpt``, once.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from swirl_lightning.console.options import subcommand_parser
from swirl_lightning.console.run import run_command
from swirl_lightning.prepare import PROGRAM


def main(args: Sequence[str] | None = None) -> None:
    """Entry point of the command."""
    parser = subcommand_parser(
        "vqgan",
        "FOLDER",
        "vqgan.safetensors beside the published vqgan.ckpt, once; it is smaller and loads\nfaster.",
        f"{PROGRAM.format('vqgan')} checkpoints/vqgan",
        PROGRAM,
    )
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="folder with vqgan.yaml and vqgan.ckpt")
    folder = parser.parse_args(args).folder
    from swirl_lightning.backbones.vqgan import convert_to_safetensors  # only now: torch takes seconds

    print(convert_to_safetensors(folder))


if __name__ == "__main__":
    run_command(main)
