"""Liquid: a Gemma causal LM whose last ids are the codes of a VQGAN. The paper's image backbone."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from swirl_lightning.backbones.image_tokens import VQGANTokens
from swirl_lightning.backbones.loading import load_base, load_config, load_tokenizer, misfit
from swirl_lightning.backbones.vqgan import vqgan_fingerprint


class Liquid(VQGANTokens):
    """Image states as VQ codes, actions as text, one vocabulary for both.

    The folder holds a Gemma checkpoint with its tokenizer. The vocabulary ends with one id per VQ code
    (Liquid-7B: 256000 text ids, then 8192 codes), and ``<boi>``, ``<eoi>`` stand around an image.

    Args:
        model_name_or_path: folder, hub name or ``builtin/tiny-liquid``.
        vqgan_path: folder with ``vqgan.yaml`` and ``vqgan.safetensors`` or ``vqgan.ckpt``; by default
            ``vqgan`` within the model's folder.
        max_action_tokens: of an action, its EOS included.
        encode_batch: images that go through the VQGAN at a time.
        **kwargs: as :class:`VQGANTokens`.

    Raises:
        ValueError: the parts do not fit together; the message names the cure.
    """

    marks = ("<boi>", "<eoi>")

    def __init__(
        self,
        model_name_or_path: str = "builtin/tiny-liquid",
        vqgan_path: str | None = None,
        max_action_tokens: int = 64,
        encode_batch: int = 32,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            model_name_or_path, vqgan_path, max_action_tokens=max_action_tokens, encode_batch=encode_batch, **kwargs
        )

    # ---- the model -------------------------------------------------------------------------------
    def load_model(self) -> PreTrainedModel:
        """Load the Gemma, quantised as configured, all frozen."""
        _ = self.code_ids  # parts that do not fit are named before a long load
        return load_base(self, AutoModelForCausalLM)

    @cached_property
    def config(self) -> Any:
        """The language model's config."""
        return load_config(self, ("gemma",))

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer that lies beside the model; it must know the marks around an image."""
        return load_tokenizer(self, self.marks, bos=True)

    # ---- codes -----------------------------------------------------------------------------------
    @property
    def image_start(self) -> int:
        """Id of VQ code 0; the codes are the last ids of the vocabulary."""
        return int(self.config.vocab_size) - self.vqgan_config.n_embed

    @cached_property
    def code_ids(self) -> Tensor:
        """Id of each code, (codebook_size,), on the CPU.

        Raises:
            ValueError: tokenizer, language model and VQGAN do not agree on where the codes start.
        """
        start, text = self.image_start, len(self.tokenizer)
        if start != text:
            misfit(
                self,
                f"its vocabulary of {self.config.vocab_size} ids leaves {start} for text beside the "
                f"{self.vqgan_config.n_embed} codes of {self.vqgan_path}, but its tokenizer has {text}; use the "
                "VQGAN and the tokenizer that this checkpoint was trained with",
            )
        return torch.arange(start, int(self.config.vocab_size), device="cpu")

    def fingerprint(self) -> str:
        """Name the VQGAN (its config and weights) and the place of its codes in the vocabulary."""
        return f"{type(self).__name__}:{vqgan_fingerprint(self.vqgan_path)}:{self.image_start}"
