"""State-only pairs from a folder of frames: each with the one some frames later, in the order of their names.

    python -m swirl_lightning.prepare.frame_pairs FRAMES OUT --step 1

writes ``OUT/pairs.jsonl``, which `JSONLTransitions(state_only=...)` reads. Each sub-folder is a sequence of its own.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path

from swirl_lightning.console.run import run_command
from swirl_lightning.engine.ranges import check_ranges
from swirl_lightning.files.paths import relative_to
from swirl_lightning.files.writing import whole_file
from swirl_lightning.prepare import PAIRS, command_parser

ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm")


def make_pairs(frames: str | Path, out: str | Path, step: int = 1) -> int:
    """Write the pairs of every frame below a folder; frames are neither opened nor copied.

    Args:
        frames: folder, searched with its sub-folders.
        out: folder for ``pairs.jsonl``, whose paths are relative to it.
        step: frames from one of a pair to the other.

    Returns:
        Number of pairs.

    Raises:
        FileNotFoundError: the folder has no frames.
        ValueError: ``step`` is below 1, or no sequence is long enough for it.
    """
    check_ranges("frame_pairs", {"step": step}, step="whole [1, inf)")
    frames, out = Path(frames), Path(out)
    found = sorted((path for path in frames.rglob("*") if path.suffix.lower() in ENDINGS), key=_order)
    if not found:
        raise FileNotFoundError(f"no frames ({', '.join(ENDINGS)}) in {frames}")
    pairs = [pair for _, group in groupby(found, key=lambda path: path.parent) for pair in _pairs(list(group), step)]
    if not pairs:
        raise ValueError(f"no folder in {frames} has two frames {step} apart: lower the step")
    with whole_file(out / PAIRS) as file:
        for before, after in pairs:
            name = f"{before.relative_to(frames).as_posix()}+{step}"
            entry = {"before_image": relative_to(out, before), "after_image": relative_to(out, after), "id": name}
            file.write((json.dumps(entry) + "\n").encode())
    return len(pairs)


def _pairs(sequence: Sequence[Path], step: int) -> Iterable[tuple[Path, Path]]:
    return zip(sequence, sequence[step:], strict=False)


def _order(path: Path) -> tuple[Path, list[tuple[bool, int, str]]]:
    """Return a key that sorts by folder, then by name with numbers by their value: frame2 before frame10."""
    parts = re.findall(r"\d+|\D+", path.name)
    return path.parent, [(part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in parts]


def main(args: Sequence[str] | None = None) -> None:
    """Entry point of the command."""
    parser = command_parser(
        "frame_pairs",
        "FRAMES OUT",
        "State-only pairs from a folder of frames.",
        "FRAMES data/frame_pairs",
    )
    parser.add_argument("frames", help="folder of frames")
    parser.add_argument("out", help="folder for pairs.jsonl")
    parser.add_argument("--step", type=int, default=1, help="frames from one of a pair to the other")
    options = parser.parse_args(args)
    print(f"pairs: {make_pairs(options.frames, options.out, options.step)}")


if __name__ == "__main__":
    run_command(main)
