"""Liquid: a Gemma causal LM whose last ids are the codes of a VQGAN. The paper's image backbone."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from swirl_lightning.backbones.base import Backbone
from swirl_lightning.backbones.images import to_images, to_pixels
from swirl_lightning.backbones.loading import encode_plain, load_base, load_config, load_tokenizer, misfit
from swirl_lightning.backbones.vqgan import CONFIG_FILE, VQGAN, VQGANConfig, vqgan_fingerprint
from swirl_lightning.engine.grammar import Grammar, TokenIds
from swirl_lightning.engine.ranges import check_ranges
from swirl_lightning.transition import State

IMAGE_MARKS = ("<boi>", "<eoi>")


class Liquid(Backbone):
    """Image states as VQ codes, actions as text, one vocabulary for both.

    The folder holds a Gemma checkpoint with its tokenizer. The vocabulary ends with one id per VQ code
    (Liquid-7B: 256000 text ids, then 8192 codes), and ``<boi>``, ``<eoi>`` stand around an image.

    Args:
        model_name_or_path: folder, hub name or ``builtin/tiny-liquid``.
        vqgan_path: folder with ``vqgan.yaml`` and ``vqgan.safetensors`` or ``vqgan.ckpt``; by default
            ``vqgan`` within the model's folder.
        max_action_tokens: of an action, its EOS included.
        encode_batch: images that go through the VQGAN at a time.
        **kwargs: as :class:`Backbone`.

    Raises:
        ValueError: the parts do not fit together; the message names the cure.
    """

    def __init__(
        self,
        model_name_or_path: str = "builtin/tiny-liquid",
        vqgan_path: str | None = None,
        max_action_tokens: int = 64,
        encode_batch: int = 32,
        **kwargs: Any,
    ) -> None:
        super().__init__(model_name_or_path, **kwargs)
        check_ranges("model.backbone", locals(), max_action_tokens="[2, inf)", encode_batch="[1, inf)")
        self.max_action_tokens = max_action_tokens
        self.encode_batch = encode_batch
        self.vqgan_path = Path(vqgan_path) if vqgan_path else Path(self.path) / "vqgan"
        self._codec: VQGAN | None = None

    # ---- the model -------------------------------------------------------------------------------
    def load_model(self) -> PreTrainedModel:
        """Load the Gemma, quantised as configured, all frozen."""
        self._check_parts()
        return load_base(self, AutoModelForCausalLM)

    @cached_property
    def config(self) -> Any:
        """The language model's config."""
        return load_config(self, ("gemma",))

    @cached_property
    def vqgan_config(self) -> VQGANConfig:
        """Sizes of the VQGAN."""
        if not self.vqgan_path.is_dir():
            misfit(
                self,
                f"no VQGAN folder at {self.vqgan_path}; set vqgan_path to the folder that holds {CONFIG_FILE} "
                "and vqgan.safetensors or vqgan.ckpt",
            )
        return VQGANConfig.from_yaml(self.vqgan_path / CONFIG_FILE)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer that lies beside the model; it must know the marks around an image."""
        return load_tokenizer(self, IMAGE_MARKS, bos=True)

    def _check_parts(self) -> None:
        """Check that tokenizer, language model and VQGAN agree on where the image ids start."""
        start, text = self.image_start, len(self.tokenizer)
        if start != text:
            misfit(
                self,
                f"its vocabulary of {self.config.vocab_size} ids leaves {start} for text beside the "
                f"{self.vqgan_config.n_embed} codes of {self.vqgan_path}, but its tokenizer has {text}; use the "
                "VQGAN and the tokenizer that this checkpoint was trained with",
            )

    # ---- tokens ----------------------------------------------------------------------------------
    @property
    def image_start(self) -> int:
        """Id of VQ code 0; the codes are the last ids of the vocabulary."""
        return int(self.config.vocab_size) - self.vqgan_config.n_embed

    def encode_text(self, text: str) -> TokenIds:
        """Encode a piece of text, without special tokens."""
        ids: TokenIds = self.tokenizer.encode(text, add_special_tokens=False)
        return ids

    def decode_text(self, ids: TokenIds) -> str:
        """Decode ids to text, without special tokens and image ids."""
        text = [i for i in ids if i < self.image_start]
        return str(self.tokenizer.decode(text, skip_special_tokens=True))

    def encode_action(self, action: str) -> TokenIds:
        """Encode an action, cut at the end if it is too long."""
        return encode_plain(self.tokenizer, action)[: self.max_action_tokens - 1]

    @torch.no_grad()
    def encode_states(self, states: Sequence[State], device: torch.device) -> list[TokenIds]:
        """Encode each image as VQ codes, row by row, as ids of the vocabulary."""
        wrong = next((s for s in states if not isinstance(s, Image.Image)), None)
        if wrong is not None:
            raise ValueError(f"Liquid reads images, got a state of type {type(wrong).__name__}: {wrong!r:.60}")
        codec, ids = self._codec_on(device), []
        for start in range(0, len(states), self.encode_batch):
            images = [s for s in states[start : start + self.encode_batch] if isinstance(s, Image.Image)]
            codes = codec.encode(to_pixels(images, self.vqgan_config.resolution).to(device))
            ids.extend((codes + self.image_start).tolist())
        return ids

    @torch.no_grad()
    def decode_states(self, contents: Sequence[TokenIds], device: torch.device) -> list[State]:
        """Decode image ids to images."""
        codec, images = self._codec_on(device), []
        for start in range(0, len(contents), self.encode_batch):
            codes = torch.tensor(contents[start : start + self.encode_batch], device=device) - self.image_start
            images.extend(to_images(codec.decode(codes)))
        return list(images)

    @torch.no_grad()
    def latents(self, images: Sequence[Image.Image], device: torch.device) -> torch.Tensor:
        """Compute the VQGAN's latents before quantisation, (N, embed_dim, grid, grid)."""
        pixels = to_pixels(list(images), self.vqgan_config.resolution)
        return self._codec_on(device).latents(pixels.to(device))

    def _codec_on(self, device: torch.device) -> VQGAN:
        """Return the VQGAN, loaded at first use, in float32: nearest codes are sensitive to rounding."""
        if self._codec is None:
            self._check_parts()
            self._codec = VQGAN.from_folder(self.vqgan_path)
        return self._codec.to(device)

    # ---- prompts ---------------------------------------------------------------------------------
    @cached_property
    def _special(self) -> dict[str, int]:
        vocabulary = self.tokenizer.get_vocab()
        boi, eoi = (vocabulary[mark] for mark in IMAGE_MARKS)
        bos, eos = int(self.tokenizer.bos_token_id), int(self.tokenizer.eos_token_id)
        return {"boi": boi, "eoi": eoi, "bos": bos, "eos": eos}

    def frame_prompt(self, template: str) -> list[str | TokenIds]:
        """Put BOS before the template."""
        return [[self._special["bos"]], template]

    def wrap_state(self, content: TokenIds) -> TokenIds:
        """Put the codes between ``<boi>`` and ``<eoi>``."""
        return [self._special["boi"], *content, self._special["eoi"]]

    def state_opening(self) -> TokenIds:
        """Return ``<boi>``, which the codes of the next state follow."""
        return [self._special["boi"]]

    # ---- what may be generated -------------------------------------------------------------------
    @cached_property
    def state_grammar(self) -> Grammar:
        """Grammar of images: exactly as many codes as an image has."""
        vqgan = self.vqgan_config
        return Grammar(tuple(range(self.image_start, int(self.config.vocab_size))), vqgan.grid**2)

    @cached_property
    def action_grammar(self) -> Grammar:
        """Grammar of text that ends with EOS."""
        eos = self._special["eos"]
        banned = {*self.tokenizer.all_special_ids, *self._special.values()} - {eos}
        known = range(self.image_start)
        return Grammar(tuple(i for i in known if i not in banned), self.max_action_tokens, eos)

    def parts(self) -> dict[str, str]:
        """Return the hash of the VQGAN."""
        _ = self.vqgan_config  # says where to get one if there is none
        return {"vqgan_path": vqgan_fingerprint(self.vqgan_path)}

    def fingerprint(self) -> str:
        """Name the VQGAN (its config and weights) and the place of its codes in the vocabulary."""
        return f"{type(self).__name__}:{vqgan_fingerprint(self.vqgan_path)}:{self.image_start}"
