"""Base classes of the families whose vocabulary holds the codes of an image tokenizer."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from swirl_lightning.backbones.base import Backbone
from swirl_lightning.backbones.loading import encode_plain, misfit, special_ids
from swirl_lightning.backbones.pixels import to_images, to_pixels
from swirl_lightning.backbones.vqgan import CONFIG_FILE, VQGAN, VQGANConfig, vqgan_fingerprint
from swirl_lightning.engine.grammar import Grammar, TokenIds
from swirl_lightning.engine.ranges import TOKEN_COUNTS, check_ranges
from swirl_lightning.transition import State


class ImageTokens(Backbone):
    """Image states as the codes of an image tokenizer, actions as text, one vocabulary for both.

    The content ids of a state are its codes, row by row. Tokens that the family puts around and between
    them come from :meth:`wrap_state` and from the grammar's forced tokens.

    Args:
        model_name_or_path: folder or hub name.
        max_action_tokens: of an action, its EOS included.
        encode_batch: images that go through the image tokenizer at a time.
        **kwargs: as :class:`Backbone`.

    Raises:
        ValueError: an option is out of range.
    """

    reads: tuple[type, ...] = (Image.Image,)

    def __init__(
        self, model_name_or_path: str, max_action_tokens: int = 64, encode_batch: int = 8, **kwargs: Any
    ) -> None:
        super().__init__(model_name_or_path, **kwargs)
        check_ranges("model.backbone", locals(), max_action_tokens=TOKEN_COUNTS, encode_batch="whole [1, inf)")
        self.max_action_tokens = max_action_tokens
        self.encode_batch = encode_batch

    # ---- what a family says ----------------------------------------------------------------------
    @property
    @abstractmethod
    def config(self) -> Any:
        """The checkpoint's config."""

    @property
    @abstractmethod
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer that lies beside the model."""

    def code_of(self, token: str) -> int | None:
        """Return the code that a token of the vocabulary stands for, or None.

        By default no token does: a family whose codes have no names defines :attr:`code_ids`.
        """
        return None

    @property
    @abstractmethod
    def codebook_size(self) -> int:
        """Number of codes of the image tokenizer."""

    @abstractmethod
    def encode_images(self, images: list[Image.Image], device: torch.device) -> Tensor:
        """Encode B images as codes, (B, codes of an image)."""

    @abstractmethod
    def decode_images(self, codes: Tensor) -> list[Image.Image]:
        """Decode codes, (B, codes of an image), to B images."""

    # ---- tokens ----------------------------------------------------------------------------------
    @property
    def vocabulary_map(self) -> dict[str, int]:
        """Token -> id, image tokens included, from config.json."""
        if not self.config.vocabulary_map:
            misfit(
                self, "its config.json has no vocabulary_map; use a checkpoint in transformers' format (of Emu3, *-hf)"
            )
        found: dict[str, int] = self.config.vocabulary_map
        return found

    @cached_property
    def code_ids(self) -> Tensor:
        """Id of each code, (codebook_size,), on the CPU.

        Raises:
            ValueError: the vocabulary does not name every code of the image tokenizer once, or by an id that it has.
        """
        ids = {c: i for token, i in self.vocabulary_map.items() if (c := self.code_of(token)) is not None}
        if sorted(ids) != list(range(self.codebook_size)):
            misfit(
                self,
                f"its vocabulary names {len(ids)} image codes, and its image tokenizer has {self.codebook_size}; "
                "use the image tokenizer and the config.json (vocabulary_map) of one and the same checkpoint",
            )
        rows = int(self.config.get_text_config().vocab_size)
        if beyond := [number for number in ids.values() if type(number) is not int or not 0 <= number < rows]:
            misfit(self, f"its vocabulary has the id {beyond[0]!r}, and its config.json says that there are {rows}")
        return torch.tensor([ids[code] for code in range(self.codebook_size)], device="cpu")

    @cached_property
    def _codes(self) -> Tensor:
        """Table from id to code, -1 where an id is no code; on the CPU."""
        table = torch.full((int(self.code_ids.max()) + 1,), -1, device="cpu")
        table[self.code_ids] = torch.arange(self.codebook_size, device="cpu")
        return table

    def encode_text(self, text: str) -> TokenIds:
        """Encode a piece of a template, without special tokens."""
        ids: TokenIds = self.tokenizer.encode(text, add_special_tokens=False)
        return ids

    def decode_text(self, ids: TokenIds) -> str:
        """Decode ids to text, without special tokens and image ids."""
        drop = self._not_text
        return str(self.tokenizer.decode([i for i in ids if i not in drop], skip_special_tokens=True))

    def encode_action(self, action: str) -> TokenIds:
        """Encode an action, cut at the end if it is too long."""
        ids, room = encode_plain(self.tokenizer, action), self.max_action_tokens - 1
        if len(ids) > room:
            self._judge_length("action", len(ids), room)
        return ids[:room]

    @torch.no_grad()
    def encode_states(self, states: Sequence[State], device: torch.device) -> list[TokenIds]:
        """Encode each image as codes, row by row, as ids of the vocabulary."""
        images, ids = [state for state in states if isinstance(state, Image.Image)], []
        if len(images) < len(states):
            wrong = next(state for state in states if not isinstance(state, Image.Image))
            raise ValueError(f"{type(self).__name__} reads images, got a state that is text: {wrong!r:.60}")
        for start in range(0, len(images), self.encode_batch):
            codes = self.encode_images(images[start : start + self.encode_batch], device)
            ids.extend(self.code_ids[codes.cpu()].tolist())
        return ids

    @torch.no_grad()
    def decode_states(self, contents: Sequence[TokenIds], device: torch.device) -> list[State]:
        """Decode image ids to images."""
        images: list[State] = []
        for start in range(0, len(contents), self.encode_batch):
            codes = self._codes[torch.tensor(contents[start : start + self.encode_batch], device="cpu")]
            images.extend(self.decode_images(codes.to(device)))
        return images

    # ---- prompts and grammars --------------------------------------------------------------------
    def frame_prompt(self, template: str) -> list[str | TokenIds]:
        """Put BOS before the template."""
        return [[int(self.tokenizer.bos_token_id)], template]

    @cached_property
    def _not_text(self) -> set[int]:
        return special_ids(self.tokenizer) | set(self.code_ids.tolist())

    @cached_property
    def action_grammar(self) -> Grammar:
        """Grammar of text that ends with EOS."""
        eos = int(self.tokenizer.eos_token_id)
        known = range(len(self.tokenizer))
        return Grammar(tuple(i for i in known if i == eos or i not in self._not_text), self.max_action_tokens, eos)


class VQGANTokens(ImageTokens):
    """Image states as the codes of a VQGAN that is published beside the model, as Liquid and Chameleon have them.

    Args:
        model_name_or_path: folder or hub name.
        vqgan_path: folder with ``vqgan.yaml`` and ``vqgan.safetensors`` or ``vqgan.ckpt``; by default ``vqgan``
            within the model's folder.
        **kwargs: as :class:`ImageTokens`.

    Raises:
        ValueError: an option is out of range.
    """

    marks: tuple[str, str]
    """Tokens before and after the codes of an image."""

    cure = f"set vqgan_path to the folder that holds {CONFIG_FILE} and vqgan.safetensors or vqgan.ckpt"
    """Advice about a VQGAN that is missing, or that is not the model's."""

    def __init__(self, model_name_or_path: str, vqgan_path: str | None = None, **kwargs: Any) -> None:
        super().__init__(model_name_or_path, **kwargs)
        self.vqgan_path = Path(vqgan_path) if vqgan_path else Path(self.path) / "vqgan"
        self._codec: VQGAN | None = None

    @cached_property
    def vqgan_config(self) -> VQGANConfig:
        """Sizes of the VQGAN."""
        if not self.vqgan_path.is_dir():
            misfit(self, f"no VQGAN folder at {self.vqgan_path}; {self.cure}")
        return VQGANConfig.from_yaml(self.vqgan_path / CONFIG_FILE)

    @property
    def codebook_size(self) -> int:
        """Number of codes, from the VQGAN's config."""
        return self.vqgan_config.n_embed

    def codec(self, device: torch.device) -> VQGAN:
        """Return the VQGAN, loaded at first use, in float32: nearest codes are sensitive to rounding."""
        if self._codec is None:
            self._codec = VQGAN.from_folder(self.vqgan_path)
        return self._codec.to(device)

    def encode_images(self, images: list[Image.Image], device: torch.device) -> Tensor:
        """Encode B images as (B, grid * grid) codes."""
        return self.codec(device).encode(to_pixels(images, self.vqgan_config.resolution).to(device))

    def decode_images(self, codes: Tensor) -> list[Image.Image]:
        """Decode (B, grid * grid) codes to B images."""
        return to_images(self.codec(codes.device).decode(codes))

    @torch.no_grad()
    def latents(self, images: Sequence[Image.Image], device: torch.device) -> Tensor:
        """Compute the VQGAN's latents before quantisation, (N, embed_dim, grid, grid)."""
        pixels = to_pixels(list(images), self.vqgan_config.resolution)
        return self.codec(device).latents(pixels.to(device))

    def wrap_state(self, content: TokenIds) -> TokenIds:
        """Put the codes between the marks."""
        return [self._mark_ids[0], *content, self._mark_ids[1]]

    def state_opening(self) -> TokenIds:
        """Return the first mark, which the codes of the next state follow."""
        return [self._mark_ids[0]]

    @cached_property
    def _mark_ids(self) -> tuple[int, int]:
        vocabulary = self.tokenizer.get_vocab()
        return vocabulary[self.marks[0]], vocabulary[self.marks[1]]

    @cached_property
    def _not_text(self) -> set[int]:
        return super()._not_text | set(self._mark_ids)

    @cached_property
    def state_grammar(self) -> Grammar:
        """Grammar of images: exactly as many codes as an image has."""
        return Grammar(tuple(sorted(self.code_ids.tolist())), self.vqgan_config.grid**2)

    def parts(self) -> dict[str, str]:
        """Return the hash of the VQGAN."""
        _ = self.vqgan_config  # says where to get one if there is none
        return {"vqgan_path": vqgan_fingerprint(self.vqgan_path)}
