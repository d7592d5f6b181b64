"""A tiny Liquid, a tiny CLIP and small image benchmarks, in the formats of the real ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, Trainer
from PIL import Image
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from support import tiny_liquid
from support.trainers import quiet_trainer
from swirl_lightning import SWIRL, SamplingConfig
from swirl_lightning.backbones.liquid import Liquid
from swirl_lightning.callbacks import PhaseSwitch
from swirl_lightning.evaluation import EvaluationConfig


def liquid_folder(out: Path) -> Path:
    """Random weights; images of 16 x 16 pixels, 16 codes each."""
    return tiny_liquid.liquid_folder(out, side=16)


def clip_folder(out: Path) -> Path:
    """A random CLIP with its tokenizer, as on the hub."""
    out.mkdir(parents=True, exist_ok=True)
    letters = [chr(c) for c in range(33, 127)]
    tokens = [*letters, *(f"{c}</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
    (out / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(tokens)}))
    (out / "merges.txt").write_text("#version: 0.2\n")
    CLIPTokenizer(str(out / "vocab.json"), str(out / "merges.txt")).save_pretrained(out)
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    config = CLIPConfig(
        text_config=shape
        | {
            "vocab_size": len(tokens),
            "max_position_embeddings": 20,
            "bos_token_id": len(tokens) - 2,
            "eos_token_id": len(tokens) - 1,
        },
        vision_config=shape | {"image_size": 16, "patch_size": 8},
        projection_dim=8,
    )
    CLIPModel(config).save_pretrained(out)
    return out


def block_image(seed: int, size: tuple[int, int] = (16, 16)) -> Image.Image:
    """Coarse random blocks of colour."""
    blocks = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(blocks).resize(size, Image.Resampling.NEAREST)


def odd_images(folder: Path) -> list[Path]:
    """Images of unusual modes: CMYK, a palette with transparency, 16-bit grey."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / name for name in ("cmyk.jpg", "palette.png", "deep.png")]
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(paths[0])
    Image.new("P", (16, 16), 3).save(paths[1], transparency=3)
    Image.fromarray(np.full((16, 16), 257 * 100, np.uint16)).save(paths[2])
    return paths


def save(path: Path, seed: int, size: tuple[int, int] = (16, 16)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    block_image(seed, size).save(path)
    return path


def write_aurora(root: Path, per_task: int = 2) -> list[dict]:
    """``test.json`` with three tasks (clevr has no results), and training sets of two."""
    records = []
    for task in ("magicbrush", "kubric", "clevr"):
        for n in range(per_task):
            entry = {"instruction": f"move the {task} thing {n}", "task": task}
            for m, key in enumerate(("input", "output") if task != "clevr" else ("input",)):
                entry[key] = f"data/{task}/images/{n}-{key}.png"
                save(root / entry[key], 10 * n + m, (16, 20) if m else (16, 16))
            records.append(entry)
    (root / "test.json").write_text(json.dumps(records))
    for task in ("magicbrush", "kubric"):
        train = []
        for n in range(4):
            entry = {"input": f"data/{task}/train/{n}a.png", "output": f"data/{task}/train/{n}b.png"}
            save(root / entry["input"], n)
            save(root / entry["output"], n + 50)
            train.append(entry | {"instruction": [f"turn {n}", "another wording"]})
        (root / "data" / task / "train.json").write_text(json.dumps(train))
    return records


def model(base: Path, **kwargs: object) -> SWIRL:
    """SWIRL on the tiny Liquid, the same weights every time."""
    torch.manual_seed(0)
    backbone = Liquid(str(base), dtype="float32", quantization=None, max_action_tokens=5)
    evaluation = kwargs.pop("evaluation", EvaluationConfig(modes=("sampled",)))
    return SWIRL(backbone, sampling=SamplingConfig(1.0, 1.0), evaluation=evaluation, **kwargs)  # type: ignore[arg-type]


def trainer(folder: Path, *callbacks: Callback, **kwargs: Any) -> Trainer:
    switch = PhaseSwitch(warmup_epochs=1, iterations=1)
    return quiet_trainer(folder, switch, *callbacks, **({"limit_val_batches": 0} | kwargs))
