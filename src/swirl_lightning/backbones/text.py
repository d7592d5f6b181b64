"""Causal language models of any family: states and actions are text."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from swirl_lightning.backbones.base import Backbone
from swirl_lightning.backbones.chat_template import around_prompt
from swirl_lightning.backbones.errors import readable
from swirl_lightning.backbones.gguf import SUFFIX, load_gguf
from swirl_lightning.backbones.loading import (
    FAMILIES,
    encode_plain,
    family_cure,
    load_base,
    load_config,
    load_tokenizer,
    misfit,
    special_ids,
    vocabulary_hash,
)
from swirl_lightning.engine.grammar import Grammar, TokenIds
from swirl_lightning.engine.ranges import TOKEN_COUNTS, check_ranges
from swirl_lightning.transition import State, Transition

TOO_LONG = ("cut", "error")
LENGTHS = {"max_state_tokens": 1024, "max_action_tokens": 64}
"""Options whose default comes from the data, and what they are where there are none."""
_PERCENTILE = 99


class TextLLM(Backbone):
    """A causal language model over textual states, for example Qwen2.5-3B-Instruct.

    The tokenizer's chat template frames the prompt where there is one. States and actions are encoded on their
    own, so the ids that are scored are those that were sampled. A tokenizer may join a blank with the word after
    it: then end the pieces of ``templates`` with a line break, and the ids are those of the whole text. Special
    tokens within a state or an action are plain text.

    Args:
        model_name_or_path: folder or hub name.
        gguf_file: name of a GGUF file in it, with weights, tokenizer and chat template, which are then dequantised
            and quantised as configured here; None for the usual format.
        max_state_tokens: of a state, as a completion (with its EOS) and within a prompt. None: the 99th percentile of
            the data's states, which a checkpoint keeps; 1,024 without data.
        max_action_tokens: of an action, likewise; 64 without data.
        too_long: ``cut`` keeps head and tail of a long state and the head of a long action, and warns
            once; ``error`` refuses them. A prompt is never cut beyond that.
        **kwargs: as :class:`Backbone`.

    Raises:
        ValueError: an option is out of range, or the checkpoint is no causal language model with an EOS token.
    """

    def __init__(
        self,
        model_name_or_path: str,
        max_state_tokens: int | None = None,
        max_action_tokens: int | None = None,
        too_long: str = "cut",
        gguf_file: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(model_name_or_path, **kwargs)
        if gguf_file is not None and (not gguf_file.endswith(SUFFIX) or Path(gguf_file).name != gguf_file):
            raise ValueError(
                f"gguf_file must be the name of a .gguf file in the folder model_name_or_path, got {gguf_file!r}"
            )
        self.gguf_file = gguf_file
        given = {"max_state_tokens": max_state_tokens, "max_action_tokens": max_action_tokens}
        check_ranges("model.backbone", given, **dict.fromkeys(given, f"{TOKEN_COUNTS} or null"))
        if too_long not in TOO_LONG:
            raise ValueError(f"too_long must be one of {list(TOO_LONG)}, got {too_long!r}")
        self.open_lengths = tuple(name for name, value in given.items() if value is None)
        self.max_state_tokens = max_state_tokens or LENGTHS["max_state_tokens"]
        self.max_action_tokens = max_action_tokens or LENGTHS["max_action_tokens"]
        self.too_long = too_long

    reads: tuple[type, ...] = (str,)

    # ---- the model -------------------------------------------------------------------------------
    def load_model(self) -> PreTrainedModel:
        """Load the base, quantised as configured, all frozen."""
        kind, known = self.config.model_type, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
        if kind in FAMILIES or (kind not in known and not self.trust_remote_code):
            misfit(self, f"it holds a {kind!r} model, which is no causal language model; {family_cure(kind)}")
        decoder = self.config.get_text_config(decoder=True)
        kinds = getattr(decoder, "layer_types", None) or getattr(decoder, "layers_block_type", None) or ()
        if recurrent := sorted(kind for kind in set(kinds) if "attention" not in kind or "linear" in kind):
            told = "it has layers without keys and values, which rollouts share"
            misfit(self, f"{told} ({', '.join(recurrent)}); use a base with attention alone")
        longest = 2 * self.max_state_tokens + self.max_action_tokens
        places = getattr(decoder, "max_position_embeddings", None)
        if places and longest > places:
            rank_zero_warn(
                f"{self.name!r} has {places} positions, and two states with an action may take {longest} tokens, "
                "without the words of the prompt: lower max_state_tokens of model.backbone"
            )
        highest = max(self.state_grammar.allowed)
        if self.gguf_file is None:
            model = load_base(self, AutoModelForCausalLM)
        else:
            model = load_gguf(self, AutoModelForCausalLM, self.config)
        rows = len(self.head(model).weight)
        if highest >= rows:
            misfit(self, f"its tokenizer has id {highest}, its output layer {rows} rows; use its own tokenizer files")
        with readable(self.name):
            same, placed = self._logits_are_the_heads(model), self._positions_count(model)
        if not same:
            misfit(self, "it scales or caps what its output layer gives, as Granite and Gemma-2 do; use another")
        if not placed:
            misfit(self, "its positions are numbers of places, and prompts of several lengths are padded; use another")
        return model

    @torch.no_grad()
    def _logits_are_the_heads(self, model: PreTrainedModel) -> bool:
        """Tell whether the model's logits are the product of its output layer alone, as sampling and scoring assume.

        The trunk is replaced by random hidden states, so that this costs next to nothing.
        """
        head, trunk = self.head(model), self.trunk(model)
        generator = torch.Generator().manual_seed(0)
        # on the CPU as the generator is, whatever device the model is being made on
        hidden = torch.randn(1, 2, head.in_features, generator=generator, device="cpu").to(head.weight)
        spread = head(hidden).std()
        if not 0 < float(spread) < torch.inf:
            misfit(self, f"the weights of its output layer are no usable numbers (a spread of {float(spread)})")
        hidden = hidden * (20 / spread)  # large enough for a cap to show
        output: Any = BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=hidden)
        output.router_logits = None  # mixtures of experts ask for it
        forward = trunk.forward
        trunk.forward = lambda *args, **kwargs: output
        try:
            given = model(input_ids=torch.zeros(1, 2, dtype=torch.long, device=hidden.device)).logits.float()
        except torch.OutOfMemoryError:
            raise
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError) as error:
            told = " ".join(str(error).split())[:100]
            cure = "write a class of your own, as docs/backbones.md says"
            misfit(self, f"its logits cannot be had of its trunk and output layer alone ({told}); {cure}")
        finally:
            trunk.forward = forward
        return torch.allclose(given, head(hidden).float(), rtol=0.05, atol=0.5)

    @torch.no_grad()
    def _positions_count(self, model: PreTrainedModel) -> bool:
        """Tell whether a token's place is its position, be it padded: by trial where the trunk takes no positions."""
        trunk = self.trunk(model)
        if "position_ids" in signature(trunk.forward).parameters:
            return True
        device = self.head(model).weight.device
        ids = torch.tensor([list(self.state_grammar.allowed[:4])], device=device)
        padded = nn.functional.pad(ids, (3, 0), value=int(ids[0, 0]))
        mask = nn.functional.pad(torch.ones_like(ids), (3, 0))

        def hidden(given: Tensor, seen: Tensor) -> Tensor:
            positions = (seen.cumsum(1) - 1).clamp_min(0)
            found: Tensor = trunk(input_ids=given, attention_mask=seen, position_ids=positions).last_hidden_state
            return found[:, -4:].float()

        alone, beside = hidden(ids, torch.ones_like(ids)), hidden(padded, mask)
        return torch.allclose(alone, beside, rtol=0.05, atol=0.05 * float(alone.std()))

    @cached_property
    def config(self) -> Any:
        """The checkpoint's config."""
        return load_config(self)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer that lies beside the model."""
        return load_tokenizer(self)

    # ---- tokens ----------------------------------------------------------------------------------
    def encode_text(self, text: str) -> TokenIds:
        """Encode a piece of a template, without special tokens."""
        ids: TokenIds = self.tokenizer.encode(text, add_special_tokens=False)
        return ids

    def decode_text(self, ids: TokenIds) -> str:
        """Decode ids to text, without special tokens."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))

    def encode_states(self, states: Sequence[State], device: torch.device) -> list[TokenIds]:
        """Encode each text; if it is too long, its middle is cut out."""
        encoded = []
        for state in states:
            if not isinstance(state, str):
                raise ValueError(f"{type(self).__name__} reads textual states, got {type(state).__name__}")
            ids, room = encode_plain(self.tokenizer, state), self.max_state_tokens - 1
            if len(ids) > room:
                self._judge_length("state", len(ids), room)
                ids = ids[: room - room // 2] + ids[len(ids) - room // 2 :]
            encoded.append(ids)
        return encoded

    def decode_states(self, contents: Sequence[TokenIds], device: torch.device) -> list[State]:
        """Decode ids to texts."""
        return [self.decode_text(ids) for ids in contents]

    def encode_action(self, action: str) -> TokenIds:
        """Encode an action, cut at the end if it is too long."""
        ids, room = encode_plain(self.tokenizer, action), self.max_action_tokens - 1
        if len(ids) > room:
            self._judge_length("action", len(ids), room)
        return ids[:room]

    def measure_lengths(self, rows: Sequence[Transition]) -> dict[str, int]:
        """Return a high percentile of the lengths in data, with room for the EOS, and say so."""
        texts = {
            "max_state_tokens": [state for row in rows for state in (row.before, row.after) if isinstance(state, str)],
            "max_action_tokens": [row.action for row in rows if row.action],
        }
        found, told = {}, []
        for name in [name for name in self.open_lengths if texts[name]]:
            lengths = [len(encode_plain(self.tokenizer, text)) for text in texts[name]]
            found[name] = max(2, int(np.percentile(lengths, _PERCENTILE, method="higher")) + 1)
            told.append(f"{name} {found[name]} (of {len(lengths)} texts the longest has {max(lengths)} tokens)")
        if told:
            rank_zero_info(f"chosen from the data, {_PERCENTILE}th percentile: {', '.join(told)}")
        return found

    # ---- prompts ---------------------------------------------------------------------------------
    def frame_prompt(self, template: str) -> list[str | TokenIds]:
        """Put the chat template around the prompt, as a user's turn, or BOS before it."""
        tokenizer = self.tokenizer
        if tokenizer.chat_template is None:
            return [[tokenizer.bos_token_id], template] if tokenizer.bos_token_id is not None else [template]
        head, tail = around_prompt(self, tokenizer)
        return [self.encode_text(head), template.rstrip(), self.encode_text(tail)]

    # ---- what may be generated -------------------------------------------------------------------
    @cached_property
    def state_grammar(self) -> Grammar:
        """Grammar of all text, up to ``max_state_tokens`` with the EOS."""
        return Grammar(self._text_ids, self.max_state_tokens, self._eos)

    @cached_property
    def action_grammar(self) -> Grammar:
        """Grammar of all text, up to ``max_action_tokens`` with the EOS."""
        return Grammar(self._text_ids, self.max_action_tokens, self._eos)

    @property
    def _eos(self) -> int:
        return int(self.tokenizer.eos_token_id)

    @cached_property
    def _text_ids(self) -> tuple[int, ...]:
        special = special_ids(self.tokenizer) - {self._eos}
        return tuple(i for i in sorted(set(self.tokenizer.get_vocab().values())) if i not in special)

    def fingerprint(self) -> str:
        """Name the tokenizer and the length of the longest state."""
        file = "" if self.gguf_file is None else f":{self.gguf_file}"
        words = vocabulary_hash(self.tokenizer)
        return f"{super().fingerprint()}:{self.max_state_tokens}:{self.too_long}{file}:{words}"
