"""A backbone of your own: images as a grid of palette colours, one token a cell.

Any causal language model serves whose tokenizer has the tokens <c0> ... <c7>, <state> and </state>.
Use it from YAML by its class path, with this folder on PYTHONPATH:

    backbone:
      class_path: my_backbone.PaletteLM
      init_args: {model_name_or_path: path/to/checkpoint, side: 8}
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from itertools import product
from typing import Any

import torch
from PIL import Image
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from swirl_lightning.backbones.base import Backbone
from swirl_lightning.backbones.images import to_rgb
from swirl_lightning.backbones.loading import encode_plain, load_base, load_tokenizer, special_ids
from swirl_lightning.engine.grammar import Grammar, TokenIds
from swirl_lightning.transition import State

PALETTE = torch.tensor(list(product((0, 255), repeat=3)))  # (8, 3) RGB
COLOURS = [f"<c{n}>" for n in range(len(PALETTE))]


class PaletteLM(Backbone):
    """Causal language model whose states are side x side cells of eight colours.

    Args:
        model_name_or_path: folder or hub name.
        side: number of cells along a side of a state.
        max_action_tokens: of an action, its EOS included.
        **kwargs: as :class:`Backbone`: quantization, dtype, gradient_checkpointing, ...
    """

    lora_targets = "all-linear"  # the default, as keep_unquantized = ("lm_head",)

    def __init__(self, model_name_or_path: str, side: int = 8, max_action_tokens: int = 16, **kwargs: Any) -> None:
        super().__init__(model_name_or_path, **kwargs)
        self.side, self.max_action_tokens = side, max_action_tokens

    # ---- the model: load_base quantises, freezes and keeps bitsandbytes differentiable -----------
    def load_model(self) -> PreTrainedModel:
        """Load the base; trunk() and head() of the base class fit any causal language model."""
        return load_base(self, AutoModelForCausalLM)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Tokenizer; a ValueError names the tokens that are missing."""
        return load_tokenizer(self, [*COLOURS, "<state>", "</state>"], bos=True)

    @cached_property
    def _ids(self) -> dict[str, int]:
        return self.tokenizer.get_vocab()

    # ---- text and actions ------------------------------------------------------------------------
    def encode_text(self, text: str) -> TokenIds:
        """Encode a piece of the prompt's template."""
        ids: TokenIds = self.tokenizer.encode(text, add_special_tokens=False)
        return ids

    def decode_text(self, ids: TokenIds) -> str:
        """Decode ids to text."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))

    def encode_action(self, action: str) -> TokenIds:
        """Encode an action, cut if it is too long; special tokens within it are plain text."""
        return encode_plain(self.tokenizer, action)[: self.max_action_tokens - 1]

    # ---- states: content ids alone, no marks and no EOS ------------------------------------------
    def encode_states(self, states: Sequence[State], device: torch.device) -> list[TokenIds]:
        """Encode each image as the nearest colour of each cell, row by row."""
        encoded = []
        for state in states:
            if not isinstance(state, Image.Image):
                raise ValueError(f"PaletteLM reads images, got {type(state).__name__}")
            small = to_rgb(state).resize((self.side, self.side), Image.Resampling.NEAREST)
            cells = torch.tensor(list(small.tobytes())).view(-1, 1, 3)  # (cells, 1, RGB)
            colours = (cells - PALETTE).pow(2).sum(-1).argmin(-1)
            encoded.append([self._ids[COLOURS[n]] for n in colours.tolist()])
        return encoded

    def decode_states(self, contents: Sequence[TokenIds], device: torch.device) -> list[State]:
        """Decode ids to images of side x side pixels."""
        colour = {self._ids[token]: PALETTE[n].tolist() for n, token in enumerate(COLOURS)}
        size = (self.side, self.side)
        return [Image.frombytes("RGB", size, bytes(v for i in ids for v in colour[i])) for ids in contents]

    # ---- prompts ---------------------------------------------------------------------------------
    def frame_prompt(self, template: str) -> list[str | TokenIds]:
        """Put BOS before the template."""
        return [[int(self.tokenizer.bos_token_id)], template]

    def wrap_state(self, content: TokenIds) -> TokenIds:
        """Put marks around a state within a prompt."""
        return [self._ids["<state>"], *content, self._ids["</state>"]]

    def state_opening(self) -> TokenIds:
        """Return the ids that end the FWM's prompt."""
        return [self._ids["<state>"]]

    # ---- what may be generated -------------------------------------------------------------------
    @cached_property
    def state_grammar(self) -> Grammar:
        """Grammar of exactly side * side colours; a family with row ends would force them: Grammar(forced=...)."""
        return Grammar(tuple(sorted(self._ids[token] for token in COLOURS)), self.side**2)

    @cached_property
    def action_grammar(self) -> Grammar:
        """Grammar of text that ends with EOS."""
        eos = int(self.tokenizer.eos_token_id)
        allowed = tuple(sorted({*self._ids.values(), eos} - (special_ids(self.tokenizer) - {eos})))
        return Grammar(allowed, self.max_action_tokens, eos)
