"""A small random checkpoint of every family, by its own transformers classes, in its on-disk format."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import (
    ChameleonConfig,
    ChameleonForConditionalGeneration,
    Emu3Config,
    Emu3ForConditionalGeneration,
    Emu3ImageProcessor,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Config,
    Qwen2ForCausalLM,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from support.tiny import byte_tokenizer, gemma_folder
from support.tiny_gguf import FILE, gguf_folder
from support.tiny_liquid import CODES, SIDE, SIZES, liquid_folder, noise_images, vqgan
from swirl_lightning.backbones.base import Backbone
from swirl_lightning.backbones.chameleon import Chameleon
from swirl_lightning.backbones.emu3 import Emu3
from swirl_lightning.backbones.liquid import Liquid
from swirl_lightning.backbones.text import TextLLM
from swirl_lightning.backbones.vlm import VLM

CPU = torch.device("cpu")
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def texts(count: int) -> list[str]:
    return [f"room {n}" for n in range(count)]


def qwen_folder(out: Path) -> Path:
    """A Qwen2 with a chat template and an output layer larger than its tokenizer, as the real one."""
    tokenizer = byte_tokenizer(["<|im_start|>", "<|im_end|>"])
    tokenizer.chat_template = CHATML
    tokenizer.eos_token = "<|im_end|>"
    torch.manual_seed(0)
    Qwen2ForCausalLM(Qwen2Config(vocab_size=len(tokenizer) + 9, **SIZES)).save_pretrained(out)
    tokenizer.save_pretrained(out)
    return out


def emu3_folder(out: Path, **vq: Any) -> Path:
    codes = [f"<|visual token {n:06d}|>" for n in range(CODES)]
    marks = ["<|image start|>", "<|image end|>", "<|image token|>", "<|extra_200|>", "<|extra_201|>", "<image>"]
    tokenizer = byte_tokenizer([*marks, *codes[::-1]])  # ids do not follow the order of the codes
    vq_config = {
        "codebook_size": CODES,
        "base_channels": 32,
        "channel_multiplier": [1, 1],
        "num_res_blocks": 1,
        "attn_resolutions": [],
        "hidden_size": 32,
    }
    torch.manual_seed(0)
    config = Emu3Config(
        vq_config=vq_config | vq,
        text_config={"vocab_size": len(tokenizer), **SIZES},
        vocabulary_map=tokenizer.get_vocab(),
    )
    model = Emu3ForConditionalGeneration(config)
    book = model.model.vqmodel.quantize.embedding.weight
    book.data.normal_(0, 0.3)  # the default codebook is as wide as one code
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    Emu3ImageProcessor(image_mean=[0.5] * 3, image_std=[0.5] * 3).save_pretrained(out)
    return out


def chameleon_folder(out: Path) -> Path:
    letters = str.maketrans("0123456789", "ABCDEFGHIJ")
    codes = [f"IMGIMG{str(n).translate(letters)}Z" for n in range(CODES)]
    marks = ["<racm3:break>", "<eoss>", "<image>", "<reserved08706>"]
    tokenizer = byte_tokenizer([*marks, *codes])
    whole = vqgan(out / "vqgan")
    torch.manual_seed(0)
    config = ChameleonConfig(
        vocab_size=len(tokenizer),
        vocabulary_map=tokenizer.get_vocab(),
        vq_config={
            "embed_dim": 8,
            "num_embeddings": CODES,
            "latent_channels": 8,
            "resolution": SIDE,
            "base_channels": 32,
            "channel_multiplier": [1, 1],
            "num_res_blocks": 1,
        },
        **SIZES,
    )
    model = ChameleonForConditionalGeneration(config)
    half = {k: v for k, v in whole.state_dict().items() if not k.startswith("decoder.")}
    model.model.vqmodel.load_state_dict(half)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    return out


def qwen_vl_folder(out: Path) -> Path:
    """Qwen2.5-VL: windowed vision attention, positions by row and column, a chat template."""
    marks = ["<|vision_start|>", "<|image_pad|>", "<|vision_end|>", "<|video_pad|>", "<|im_start|>", "<|im_end|>"]
    tokenizer = byte_tokenizer(marks)
    tokenizer.chat_template = CHATML
    tokenizer.eos_token = "<|im_end|>"
    ids = tokenizer.get_vocab()
    config = Qwen2_5_VLConfig(
        text_config={
            **SIZES,
            "vocab_size": len(tokenizer),
            "rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0},
        },
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 2,
            "out_hidden_size": 32,
            "patch_size": 2,
            "spatial_merge_size": 2,
            "window_size": 8,
            "fullatt_block_indexes": [1],
        },
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
    )
    torch.manual_seed(0)
    Qwen2_5_VLForConditionalGeneration(config).save_pretrained(out)
    tokenizer.save_pretrained(out)
    Qwen2VLImageProcessorPil(patch_size=2, merge_size=2).save_pretrained(out)
    return out


def smolvlm_folder(out: Path) -> Path:
    tokenizer = byte_tokenizer(["<image>", "<fake_token_around_image>", "<global-img>"])
    config = SmolVLMConfig(
        text_config={"model_type": "llama", "vocab_size": len(tokenizer), **SIZES},
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": SIDE,
            "patch_size": 2,
        },
        image_token_id=tokenizer.get_vocab()["<image>"],
        scale_factor=2,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    SmolVLMForConditionalGeneration(config).save_pretrained(out)
    tokenizer.save_pretrained(out)
    size = {"longest_edge": SIDE}
    SmolVLMImageProcessorPil(size=size, max_image_size=size).save_pretrained(out)
    return out


def mixed(count: int) -> list[Any]:
    """Images first, then texts: as `before` and `after` of a VLM's transitions."""
    half = count // 2
    return [*noise_images(half), *texts(count - half)]


@dataclass(frozen=True)
class Family:
    """Functions of a family: writing a checkpoint, loading it, and making states."""

    write: Callable[[Path], Path]
    load: Callable[..., Backbone]
    states: Callable[[int], list[Any]]
    options: dict[str, Any]


TEXT = {"max_state_tokens": 10, "max_action_tokens": 6}
IMAGES = {"max_action_tokens": 6}
FAMILIES = {
    "text": Family(partial(gemma_folder, layers=2), TextLLM, texts, TEXT),
    "chat": Family(qwen_folder, TextLLM, texts, TEXT),
    "gguf": Family(gguf_folder, TextLLM, texts, TEXT | {"gguf_file": FILE}),
    "liquid": Family(liquid_folder, Liquid, noise_images, IMAGES),
    "emu3": Family(emu3_folder, Emu3, noise_images, IMAGES | {"resolution": SIDE}),
    "chameleon": Family(chameleon_folder, Chameleon, noise_images, IMAGES),
    "qwen_vl": Family(qwen_vl_folder, VLM, mixed, TEXT | {"resolution": SIDE}),
    "smolvlm": Family(smolvlm_folder, VLM, mixed, TEXT),
}


def backbone_of(name: str, folder: Path, **kwargs: Any) -> Any:
    family = FAMILIES[name]
    return family.load(str(folder), **({"dtype": "float32"} | family.options | kwargs))
