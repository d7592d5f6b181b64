"""The published weights of Chameleon's and Liquid's VQGAN as safetensors, which are smaller and load faster.

    python -m swirl_lightning.prepare.vqgan FOLDER

writes ``vqgan.safetensors`` beside ``vqgan.ckpt``, once.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from swirl_lightning.console.run import run_command
from swirl_lightning.prepare import command_parser


def main(args: Sequence[str] | None = None) -> None:
    """Entry point of the command."""
    parser = command_parser(
        "vqgan",
        "FOLDER",
        "vqgan.safetensors beside the published vqgan.ckpt, once; it is smaller and loads\nfaster.",
        "checkpoints/vqgan",
    )
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="folder with vqgan.yaml and vqgan.ckpt")
    folder = parser.parse_args(args).folder
    from swirl_lightning.backbones.vqgan import convert_to_safetensors  # only now: torch takes seconds

    print(convert_to_safetensors(folder))


if __name__ == "__main__":
    run_command(main)
