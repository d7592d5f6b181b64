"""A small Liquid in the format of the real one: a Gemma whose last ids are codes, and a VQGAN beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import GemmaConfig, GemmaForCausalLM

from support.tiny import byte_tokenizer
from swirl_lightning.backbones.vqgan import VQGAN, VQGANConfig

CODES, SIDE, GRID = 16, 8, 4
SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "initializer_range": 0.3,  # far from uniform, so that mistakes show
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": 2,
}


def noise_images(count: int, side: int = SIDE, seed: int = 0) -> list[Image.Image]:
    rng = np.random.default_rng(seed)
    return [Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8)) for _ in range(count)]


def vqgan(folder: Path, codes: int = CODES, side: int = SIDE) -> VQGAN:
    """Images of ``side`` pixels as 4 x 4 codes, in the taming layout; the codebook is made of real latents."""
    levels = (side // GRID).bit_length()
    sizes: dict[str, Any] = {"z_channels": 8, "embed_dim": 8, "resolution": side, "ch": 32, "num_res_blocks": 1}
    torch.manual_seed(1)
    model = VQGAN(VQGANConfig(n_embed=codes, ch_mult=(1,) * levels, **sizes))
    with torch.no_grad():
        z = model.latents(torch.rand(8, 3, side, side) * 2 - 1).permute(0, 2, 3, 1).flatten(0, 2)
        model.quantize.embedding.weight.copy_(z[torch.linspace(0, len(z) - 1, codes).long()])
    folder.mkdir(parents=True, exist_ok=True)
    model.config.to_yaml(folder / "vqgan.yaml")
    save_file(model.state_dict(), folder / "vqgan.safetensors")
    return model


def liquid_folder(out: Path, side: int = SIDE) -> Path:
    tokenizer = byte_tokenizer(["<boi>", "<eoi>"])
    torch.manual_seed(0)
    config = GemmaConfig(vocab_size=len(tokenizer) + CODES, head_dim=16, **SIZES)
    GemmaForCausalLM(config).save_pretrained(out)
    tokenizer.save_pretrained(out)
    vqgan(out / "vqgan", side=side)
    return out
