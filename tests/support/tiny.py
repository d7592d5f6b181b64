"""Small real models in the on-disk format of the real ones."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GemmaConfig, GemmaForCausalLM, PreTrainedTokenizerFast

from swirl_lightning.backbones.text import TextLLM

SPECIALS = ["<pad>", "<eos>", "<bos>"]


def byte_tokenizer(extra: list[str] | None = None) -> PreTrainedTokenizerFast:
    """One id per byte after the specials: any text round-trips."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = SPECIALS + (extra or []) + alphabet
    core = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        eos_token="<eos>",
        bos_token="<bos>",
        additional_special_tokens=extra or [],
    )


def gemma_folder(folder: Path, *, hidden: int = 64, layers: int = 1, seed: int = 0) -> Path:
    """A Gemma causal LM with random weights and a byte tokenizer."""
    tokenizer = byte_tokenizer()
    torch.manual_seed(seed)
    config = GemmaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=hidden // 4,
        bos_token_id=2,
        eos_token_id=1,
        pad_token_id=0,
        initializer_range=0.3,  # far from uniform, so that mistakes show
    )
    GemmaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def text_backbone(folder: Path, **kwargs: object) -> TextLLM:
    settings = {"dtype": "float32", "quantization": "nf4", "max_state_tokens": 12, "max_action_tokens": 6}
    return TextLLM(str(folder), **(settings | kwargs))  # type: ignore[arg-type]
