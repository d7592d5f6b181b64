"""Chameleon: early fusion of text and VQGAN codes, with a decoder that its checkpoint leaves out."""

from __future__ import annotations

import re
from functools import cached_property
from typing import Any

import torch
from torch import nn
from transformers import ChameleonForConditionalGeneration, PreTrainedModel, PreTrainedTokenizerBase

from swirl_lightning.backbones.image_tokens import VQGANTokens
from swirl_lightning.backbones.loading import load_base, load_config, load_tokenizer, misfit
from swirl_lightning.backbones.vqgan import CONFIG_FILE, VQGANConfig, vqgan_fingerprint

_CODE = re.compile("IMGIMG([A-J]+)Z")
_DIGITS = str.maketrans("ABCDEFGHIJ", "0123456789")


class Chameleon(VQGANTokens):
    """Chameleon in transformers' format (``ChameleonForConditionalGeneration``).

    transformers' forward masks the logits of all image tokens, and its VQ has no decoder. Here states come
    from the inner model's hidden states through the head, and images go through the published VQGAN
    (``vqgan.yaml`` and ``vqgan.ckpt`` of the original release) in both directions. Images are padded to
    a square; Chameleon's own processor crops them, which would cut a part of the state away.

    Args:
        model_name_or_path: folder or hub name.
        **kwargs: as :class:`VQGANTokens`.

    Raises:
        ValueError: the checkpoint is of another family or its parts do not fit; the message names the cure.
    """

    lora_targets = r".*model\.layers\.\d+\.(self_attn|mlp)\.(q|k|v|o|gate|up|down)_proj"
    keep_unquantized = ("lm_head", "model.vqmodel")
    marks = ("<racm3:break>", "<eoss>")
    cure = f"set vqgan_path to a folder with {CONFIG_FILE} and vqgan.ckpt of Chameleon's original release"

    # ---- the model -------------------------------------------------------------------------------
    def load_model(self) -> PreTrainedModel:
        """Load the base without its half of the VQGAN; the whole one is kept apart."""
        _ = self.code_ids, self.tokenizer  # parts that do not fit are named before a long load
        model = load_base(self, ChameleonForConditionalGeneration)
        own = model.model.vqmodel.quantize.embedding.weight.float()
        ours = self.codec(torch.device("cpu")).quantize.embedding.weight
        if not torch.allclose(own.cpu(), ours.cpu(), atol=2e-2 * float(ours.abs().max())):  # bf16 rounds
            misfit(self, f"the codebook of {self.vqgan_path} is another one than the checkpoint's; {self.cure}")
        model.model.vqmodel = nn.Identity()
        return model

    def trunk(self, model: nn.Module) -> nn.Module:
        """Return the inner model: the outer forward would mask every image token."""
        return model.model  # type: ignore[return-value]

    @cached_property
    def config(self) -> Any:
        """The checkpoint's config."""
        return load_config(self, ("chameleon",))

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer; it must know Chameleon's image marks."""
        return load_tokenizer(self, self.marks, bos=True)

    # ---- codes -----------------------------------------------------------------------------------
    def code_of(self, token: str) -> int | None:
        """Read the code in a token's name: ``IMGIMGBCDZ`` is 123, since A to J are digits, and Z ends the name."""
        match = _CODE.fullmatch(token)
        return int(match[1].translate(_DIGITS)) if match else None

    @cached_property
    def vqgan_config(self) -> VQGANConfig:
        """Sizes of the VQGAN."""
        config = super().vqgan_config
        wanted = (self.config.vq_config.num_embeddings, self.config.vq_config.embed_dim)
        if (config.n_embed, config.embed_dim) != wanted:
            misfit(
                self,
                f"its VQ has {wanted[0]} codes of {wanted[1]} numbers, and {self.vqgan_path} has "
                f"{config.n_embed} of {config.embed_dim}; {self.cure}",
            )
        return config

    @cached_property
    def _not_text(self) -> set[int]:
        reserved = {i for token, i in self.tokenizer.get_vocab().items() if token.startswith("<reserved")}
        return super()._not_text | reserved

    def fingerprint(self) -> str:
        """Name the VQGAN and the place of its codes in the vocabulary."""
        ids = self.code_ids
        return f"{type(self).__name__}:{vqgan_fingerprint(self.vqgan_path)}:{int(ids[0])}:{int(ids.sum())}"
