"""Base class of the families whose vocabulary holds the codes of an image tokenizer."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from swirl_lightning.backbones.base import Backbone
from swirl_lightning.backbones.loading import encode_plain, misfit, special_ids
from swirl_lightning.engine.grammar import Grammar, TokenIds
from swirl_lightning.engine.ranges import check_ranges
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

    def __init__(
        self, model_name_or_path: str, max_action_tokens: int = 64, encode_batch: int = 8, **kwargs: Any
    ) -> None:
        super().__init__(model_name_or_path, **kwargs)
        check_ranges("model.backbone", locals(), max_action_tokens="[2, inf)", encode_batch="[1, inf)")
        self.max_action_tokens = max_action_tokens
        self.encode_batch = encode_batch

    # ---- what a family says ----------------------------------------------------------------------
    @property
    @abstractmethod
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer that lies beside the model."""

    @property
    @abstractmethod
    def vocabulary_map(self) -> dict[str, int]:
        """Token -> id, image tokens included (from the model's config)."""

    @abstractmethod
    def code_of(self, token: str) -> int | None:
        """Return the code that a token of the vocabulary stands for, or None."""

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
    @cached_property
    def code_ids(self) -> Tensor:
        """Id of each code, (codebook_size,), on the CPU.

        Raises:
            ValueError: the vocabulary does not name every code of the image tokenizer once.
        """
        ids = {c: i for token, i in self.vocabulary_map.items() if (c := self.code_of(token)) is not None}
        if sorted(ids) != list(range(self.codebook_size)):
            misfit(
                self,
                f"its vocabulary names {len(ids)} image codes, and its image tokenizer has {self.codebook_size}; "
                "use the image tokenizer and the config.json (vocabulary_map) of one and the same checkpoint",
            )
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
        return encode_plain(self.tokenizer, action)[: self.max_action_tokens - 1]

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
