"""Building of ``assets/tiny-liquid``, the base of the embedded default, in the on-disk format of Liquid-7B.

    python -m recipes.tiny_liquid --out src/swirl_lightning/assets/tiny-liquid

With ``--grid 8`` it makes a base for frames of 8 x 8 cells, which is not shipped.

The base is trained on single frames of the ``base`` split, random grids, random edits of both, and words. No
sample has an action beside frames, a step of the simulator, or a layout of the held-out splits.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import GemmaForCausalLM

from recipes import tiny_edits, tiny_lm, tiny_tasks, tiny_text, tiny_vqgan
from recipes.tiny_edits import FLOOR, WALL, Scenes
from recipes.tiny_lm import LMConfig, build_lm, train_lm
from recipes.tiny_tasks import NAMES, PLACES, Tasks
from recipes.tiny_text import build_tokenizer
from swirl_lightning.backbones.vqgan import VQGAN
from swirl_lightning.benchmarks.minigrid.simulator import LARGEST, SMALLEST
from swirl_lightning.benchmarks.minigrid.tiles import CELLS, GRID, TILE, atlas
from swirl_lightning.console.run import run_command
from swirl_lightning.engine.ranges import check_ranges

SEED = 0
BASE_TRANSITIONS = 1200
"""Number of steps of the ``base`` split whose frames are used."""
HELD_OUT_TRANSITIONS = 100
STAGES = ((PLACES, 1.0, LMConfig(steps=1750, decay=0.0)), (NAMES, 0.3, LMConfig(steps=2000)))
"""Task shares, weight of bare cells and training settings of the language model's stages, in order."""
HELD_OUT_TASKS = {"changed": 72, "edit": 48, "difference": 24, "copy": 24, "look": 24, "where": 24, "ahead": 24}
HASH_FILE = "RECIPE.sha256"

Log = Callable[[str], None]


def recipe_hash() -> str:
    """Hash the recipe's source files, which hold its settings."""
    digest = hashlib.sha256()
    for module in (tiny_edits, tiny_lm, tiny_tasks, tiny_text, tiny_vqgan):
        digest.update(Path(str(module.__file__)).read_bytes())
    digest.update(Path(__file__).read_bytes())
    return digest.hexdigest()


def tiles() -> Tensor:
    """Return the images of all kinds of cell, (len(CELLS), 3, 8, 8) in [-1, 1]."""
    return torch.from_numpy(atlas()).permute(0, 3, 1, 2).float() / 127.5 - 1


def build_vqgan(folder: Path, log: Log, grid: int = GRID) -> VQGAN:
    """Train the VQGAN for frames of (grid, grid) cells and save it in half precision; cell i has code i.

    Raises:
        RuntimeError: the codes are not clean; train longer.
    """
    model = tiny_vqgan.train_vqgan(tiles(), FLOOR, WALL, SEED, log, replace(tiny_vqgan.CONFIG, resolution=grid * TILE))
    folder.mkdir(parents=True, exist_ok=True)
    model.config.to_yaml(folder / "vqgan.yaml")
    save_file({k: v.half().contiguous() for k, v in model.state_dict().items()}, folder / "vqgan.safetensors")
    model = VQGAN.from_folder(folder)
    coded, painted = tiny_vqgan.check_vqgan(model, tiles(), FLOOR, WALL, SEED + 1)
    log(f"vqgan: right code for {coded:.5f} of cells, {painted:.5f} painted recognisably")
    if min(coded, painted) < 0.999:
        raise RuntimeError("the VQGAN takes cells for one another; train it longer")
    return model


def save_lm(model: GemmaForCausalLM, folder: Path) -> None:
    """Write config and bfloat16 weights as one safetensors file."""
    state = {k: v.to(torch.bfloat16) for k, v in model.state_dict().items()}
    model.save_pretrained(folder, state_dict=state)
    config = json.loads((folder / "config.json").read_text()) | {"dtype": "bfloat16"}
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def build(out: Path, log: Log, grid: int = GRID) -> None:
    """Build the whole base for frames of (grid, grid) cells: tokenizer, VQGAN, language model, hash."""
    torch.manual_seed(SEED)
    out.mkdir(parents=True, exist_ok=True)
    tokenizer = build_tokenizer(grid)
    tokenizer.save_pretrained(out)
    build_vqgan(out / "vqgan", log, grid)
    codes = list(range(len(CELLS)))
    asked = Tasks(Scenes(HELD_OUT_TRANSITIONS, SEED + 7, "validation", grid), tokenizer, codes)
    held_out = [asked.draw(task) for task, count in HELD_OUT_TASKS.items() for _ in range(count)]
    torch.manual_seed(SEED)
    model = build_lm(STAGES[0][-1], tokenizer, tiny_vqgan.CONFIG.n_embed)
    log(f"lm: {model.num_parameters():,} parameters, vocabulary {model.config.vocab_size}")
    pad = int(tokenizer.pad_token_id)
    for shares, bare_weight, settings in STAGES:
        tasks = Tasks(Scenes(BASE_TRANSITIONS, SEED, grid=grid), tokenizer, codes, shares, bare_weight)
        model.requires_grad_(True)
        model = train_lm(model, tasks, held_out, settings, pad, log, lambda m: save_lm(m, out))
    save_lm(model, out)
    (out / HASH_FILE).write_text(recipe_hash() + "\n")


def main() -> None:
    """Entry point of the command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--grid", type=int, default=GRID, help="cells along a side of a frame")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    options = parser.parse_args()
    check_ranges("tiny_liquid", vars(options), grid=f"[{SMALLEST}, {LARGEST}]")
    torch.set_num_threads(options.threads)
    start = time.monotonic()
    build(options.out, lambda text: print(f"{time.monotonic() - start:6.0f} s  {text}", flush=True), options.grid)


if __name__ == "__main__":
    run_command(main)
