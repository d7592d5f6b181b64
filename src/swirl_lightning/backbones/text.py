"""Any causal language model: states and actions are text."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from swirl_lightning.backbones.base import Backbone, Grammar
from swirl_lightning.backbones.quantization import prepare_quantized
from swirl_lightning.prompts import TokenIds
from swirl_lightning.transition import State


class TextLLM(Backbone):
    """A causal language model over textual states, for example Qwen2.5-3B-Instruct.

    The tokenizer's chat template frames the prompt where there is one. What is too long is cut: a state in
    a prompt keeps its head and its tail, an action keeps its head; a completion ends with its EOS at the latest
    at its maximal length.

    Args:
        model_name_or_path: folder or hub name.
        max_state_tokens: of a state, as a completion (EOS included) and within a prompt.
        max_action_tokens: of an action, likewise.
        **kwargs: as :class:`Backbone`.

    Raises:
        ValueError: the tokenizer has no EOS token.
    """

    def __init__(
        self,
        model_name_or_path: str,
        max_state_tokens: int = 1024,
        max_action_tokens: int = 64,
        **kwargs: Any,
    ) -> None:
        super().__init__(model_name_or_path, **kwargs)
        self.max_state_tokens, self.max_action_tokens = max_state_tokens, max_action_tokens

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer that lies beside the model."""
        tokenizer = AutoTokenizer.from_pretrained(
            self.path, revision=self.revision, trust_remote_code=self.trust_remote_code
        )
        if tokenizer.eos_token_id is None:
            raise ValueError(
                f"the tokenizer of {self.name!r} has no EOS token; set eos_token in tokenizer_config.json"
            )
        return tokenizer

    def load_model(self) -> PreTrainedModel:
        """The base, quantised as configured, all frozen."""
        model = AutoModelForCausalLM.from_pretrained(
            self.path,
            revision=self.revision,
            quantization_config=self.quantization_config(),
            dtype=self.dtype,
            attn_implementation=self.attn_implementation,
            trust_remote_code=self.trust_remote_code,
        )
        return prepare_quantized(model)

    def encode_text(self, text: str) -> TokenIds:
        """Ids of a piece of text, no special tokens added."""
        ids: TokenIds = self.tokenizer.encode(text, add_special_tokens=False)
        return ids

    def decode_text(self, ids: TokenIds) -> str:
        """Text of ids, special tokens dropped."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))

    def encode_states(self, states: Sequence[State], device: torch.device) -> list[TokenIds]:
        """Ids of each text, its middle cut out where it is too long."""
        encoded = []
        for state in states:
            if not isinstance(state, str):
                raise ValueError(f"{type(self).__name__} reads textual states, got {type(state).__name__}")
            ids, room = self.encode_text(state), self.max_state_tokens - 1
            encoded.append(ids if len(ids) <= room else ids[: room - room // 2] + ids[len(ids) - room // 2 :])
        return encoded

    def decode_states(self, contents: Sequence[TokenIds], device: torch.device) -> list[State]:
        """The texts."""
        return [self.decode_text(ids) for ids in contents]

    def encode_action(self, action: str) -> TokenIds:
        """Ids of an action, cut at the end where it is too long."""
        return self.encode_text(action)[: self.max_action_tokens - 1]

    def frame_prompt(self, template: str) -> list[str | TokenIds]:
        """The chat template around the prompt as a user's turn, or BOS before it."""
        tokenizer = self.tokenizer
        if tokenizer.chat_template is None:
            return [[tokenizer.bos_token_id], template] if tokenizer.bos_token_id is not None else [template]
        mark = "\u0001"  # no template contains it
        framed = str(
            tokenizer.apply_chat_template(
                [{"role": "user", "content": mark}], tokenize=False, add_generation_prompt=True
            )
        )
        if framed.count(mark) != 1:
            raise ValueError(f"the chat template of {self.name!r} does not show the user's message exactly once")
        head, tail = framed.split(mark)
        return [self.encode_text(head), template.rstrip(), self.encode_text(tail)]

    @cached_property
    def state_grammar(self) -> Grammar:
        """All text, up to ``max_state_tokens`` with the EOS."""
        return Grammar(self._text_ids, self.max_state_tokens, self._eos)

    @cached_property
    def action_grammar(self) -> Grammar:
        """All text, up to ``max_action_tokens`` with the EOS."""
        return Grammar(self._text_ids, self.max_action_tokens, self._eos)

    @property
    def _eos(self) -> int:
        return int(self.tokenizer.eos_token_id)

    @property
    def _text_ids(self) -> tuple[int, ...]:
        special = set(self.tokenizer.all_special_ids) - {self._eos}
        return tuple(i for i in range(len(self.tokenizer)) if i not in special)
