"""Interface of a model family that SWIRL can train."""

from __future__ import annotations

import os
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from PIL.Image import Image
from torch import nn
from transformers import BitsAndBytesConfig, PreTrainedModel

from swirl_lightning.engine.grammar import Grammar, TokenIds
from swirl_lightning.transition import State, Transition

BUILTIN_PREFIX = "builtin/"


class Backbone(ABC):
    """A model family: loading, tokens of states and actions, and the layers that get a LoRA.

    Args:
        model_name_or_path: folder, hub name, or ``builtin/<name>`` for a base shipped with the package.
        revision: hub revision.
        quantization: ``nf4`` (4-bit NormalFloat, double quantisation) or None for plain weights.
        dtype: dtype of computation and of the weights that are not quantised.
        attn_implementation: as in transformers.
        gradient_checkpointing: recompute activations in training: less memory, a third more time.
        trust_remote_code: as in transformers; off unless you set it.
        dequantize_once: keep a copy of the 4-bit weights in ``dtype`` after their first use: more memory for
            much less work at every token. None: where the copy takes a small part of the device's free memory.
        cuda_graphs: replay the decode steps of rollouts as CUDA graphs. None: on CUDA devices, of completions long
            enough to be worth a capture, without ``speculative``.
        speculative: draw a state from the one before it as a draft, several tokens in one pass, and run once what
            rollouts have in common. The same tokens are drawn, sooner where states change little. None: on CPUs.
            Not with ``cuda_graphs``.

    Raises:
        ValueError: ``quantization`` or ``dtype`` is unknown, or ``speculative`` and ``cuda_graphs`` are set.
    """

    lora_targets: str | Sequence[str] = "all-linear"
    """Module names (PEFT ``target_modules``) where the adapters go by default."""
    keep_unquantized: Sequence[str] = ("lm_head",)
    """Module names that stay out of 4-bit. Replaces bitsandbytes' own list."""
    reads: tuple[type, ...] = (str, Image)
    """Kinds of states that it encodes."""
    ids_suffice: bool = True
    """False if the ids of a state only name it, so that they cannot be kept in its place."""
    capturable: bool = True
    """True if the trunk's decode step can be captured as a CUDA graph: it waits for no value of the device."""
    open_lengths: Sequence[str] = ()
    """Names of options that hold a length in tokens and were left to the data."""
    too_long: str = "cut"
    """``cut`` or ``error``: what becomes of a text that is longer than the options allow."""
    gguf_file: str | None = None
    """Name of the GGUF file that is the checkpoint, for families that read one."""

    def __init__(
        self,
        model_name_or_path: str,
        revision: str | None = None,
        quantization: str | None = "nf4",
        dtype: str = "bfloat16",
        attn_implementation: str = "sdpa",
        gradient_checkpointing: bool = False,
        trust_remote_code: bool = False,
        dequantize_once: bool | None = None,
        cuda_graphs: bool | None = None,
        speculative: bool | None = None,
    ) -> None:
        if quantization not in ("nf4", None):
            raise ValueError(f"quantization must be 'nf4' or null, got {quantization!r}")
        if dtype not in ("float32", "bfloat16", "float16"):
            raise ValueError(f"dtype must be float32, bfloat16 or float16, got {dtype!r}")
        if speculative and cuda_graphs:
            raise ValueError("speculative passes have no fixed shape for cuda_graphs: set one of the two")
        self.name = model_name_or_path
        self.path = resolve_model_path(model_name_or_path)
        self.revision = revision
        self.quantization = quantization
        self.dtype: torch.dtype = getattr(torch, dtype)
        self.attn_implementation = attn_implementation
        self.gradient_checkpointing = gradient_checkpointing
        self.trust_remote_code = trust_remote_code
        self.dequantize_once = dequantize_once
        self.cuda_graphs = cuda_graphs
        self.speculative = speculative
        self.chosen_lengths: dict[str, int] = {}
        self.lengths_of_evaluation = False
        self._unmeasured: dict[str, int] = {}  # what open lengths are before they are set
        self._warned: set[str] = set()

    # ---- the model -------------------------------------------------------------------------------
    @abstractmethod
    def load_model(self) -> PreTrainedModel:
        """Load the base, quantised as configured, on torch's default device, all frozen."""

    def trunk(self, model: nn.Module) -> nn.Module:
        """Return the part of ``model`` that turns ids into ``last_hidden_state``, without the head."""
        return model.get_decoder()  # type: ignore[operator]

    def head(self, model: nn.Module) -> nn.Linear:
        """Return the output layer, (vocabulary, hidden)."""
        return model.get_output_embeddings()  # type: ignore[operator]

    def quantization_config(self) -> BitsAndBytesConfig | None:
        """Return the BitsAndBytesConfig that `load_model` hands to transformers."""
        if self.quantization is None:
            return None
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=self.dtype,
            bnb_4bit_quant_storage=self.dtype if self.dtype != torch.float16 else torch.uint8,
            llm_int8_skip_modules=list(self.keep_unquantized),
        )

    def quantization_options(self) -> dict[str, Any]:
        """Return the options of ``from_pretrained`` that quantise the base on torch's default device.

        Without the device transformers puts a quantised model on a GPU wherever there is one.
        """
        if (config := self.quantization_config()) is None:
            return {}
        return {"quantization_config": config, "device_map": {"": torch.get_default_device()}}

    # ---- tokens ----------------------------------------------------------------------------------
    @abstractmethod
    def encode_text(self, text: str) -> TokenIds:
        """Encode a piece of text, without special tokens."""

    @abstractmethod
    def decode_text(self, ids: TokenIds) -> str:
        """Decode ids to text, without special tokens."""

    @abstractmethod
    def encode_states(self, states: Sequence[State], device: torch.device) -> list[TokenIds]:
        """Encode each state as content ids, without marks around them and without EOS."""

    @abstractmethod
    def decode_states(self, contents: Sequence[TokenIds], device: torch.device) -> list[State]:
        """Decode content ids to states."""

    def encode_action(self, action: str) -> TokenIds:
        """Encode an action as content ids."""
        return self.encode_text(action)

    def decode_action(self, content: TokenIds) -> str:
        """Decode content ids to an action in words."""
        return self.decode_text(content).strip()

    def check_action(self, action: str) -> None:
        """Raise ValueError for an action that the grammar of actions cannot write, or would cut."""
        if not isinstance(action, str) or not action.strip():
            raise ValueError(f"an action must have words, got {action!r}: leave it out, or say what is done")
        ids, grammar = self.encode_action(action), self.action_grammar
        read = self.decode_action(ids) if set(ids) <= set(grammar.allowed) else ""
        if _letters(read) != _letters(action):
            raise ValueError(
                f"the action {action!r} is outside the grammar of {type(self).__name__}, which reads it as {read!r} "
                f"(max_action_tokens {grammar.max_length}): shorten it, or use words like those of the training data"
            )

    def _judge_length(self, what: str, length: int, room: int) -> None:
        """Refuse a text that is too long, or warn of it, once for states and once for actions."""
        text = f"{self.name!r}: {what} of {length} tokens exceeds the {room} that max_{what}_tokens leaves"
        if self.too_long == "error":
            raise ValueError(f"{text}; raise max_{what}_tokens, shorten the data, or set too_long: cut")
        if what not in self._warned:
            self._warned.add(what)
            rank_zero_warn(f"{text}: it is cut (said once)")

    def check_kind(self, state: object, of: str) -> None:
        """Raise ValueError for a text or an image ``of`` some data that the backbone does not read."""
        kinds = ("texts", "images") if isinstance(state, str) else ("images", "texts")
        if isinstance(state, str | Image) and not isinstance(state, self.reads):
            raise ValueError(
                f"the states of {of} are {kinds[0]}, and {type(self).__name__} reads {kinds[1]}: give other data, or "
                "another model.backbone"
            )

    # ---- prompts ---------------------------------------------------------------------------------
    def frame_prompt(self, template: str) -> list[str | TokenIds]:
        """Return the template with what the family puts around a prompt (BOS, chat turns)."""
        return [template]

    def wrap_state(self, content: TokenIds) -> TokenIds:
        """Put the family's marks around the content of a state inside a prompt."""
        return content

    def state_opening(self) -> TokenIds:
        """Return the ids that end a prompt which a state follows, for example ``<boi>``."""
        return []

    # ---- what may be generated -------------------------------------------------------------------
    @property
    @abstractmethod
    def state_grammar(self) -> Grammar:
        """Grammar of the states that the FWM may generate."""

    @property
    @abstractmethod
    def action_grammar(self) -> Grammar:
        """Grammar of the actions that the IDM may generate."""

    # ---- lengths that the options leave to the data ----------------------------------------------
    def measure_lengths(self, rows: Sequence[Transition]) -> dict[str, int]:
        """Return a value from data for each of ``open_lengths`` that they can tell."""
        return {}

    @property
    def needs_lengths(self) -> bool:
        """Whether ``open_lengths`` are to be measured: not once a training or its checkpoint has set them."""
        return bool(self.open_lengths) and (self.lengths_of_evaluation or not self.chosen_lengths)

    def set_lengths(self, lengths: Mapping[str, int]) -> None:
        """Set those of ``open_lengths`` that are among the given ones, and keep them in ``chosen_lengths``.

        They take the place of those of an evaluation (``lengths_of_evaluation``).
        """
        self._unmeasured = self._unmeasured or {name: getattr(self, name) for name in self.open_lengths}
        kept = {} if self.lengths_of_evaluation else self.chosen_lengths
        self.chosen_lengths = kept | {name: value for name, value in lengths.items() if name in self.open_lengths}
        self.lengths_of_evaluation = False
        for name, value in (self._unmeasured | self.chosen_lengths).items():
            setattr(self, name, value)
        for grammar in ("state_grammar", "action_grammar"):  # made of them, and kept
            self.__dict__.pop(grammar, None)

    # ---- identity --------------------------------------------------------------------------------
    def parts(self) -> dict[str, str]:
        """Return a hash of the content of each part beside the language model, by the option that names it.

        Raises:
            ValueError: a part is not there, or does not fit the others.
        """
        return {}

    def fingerprint(self) -> str:
        """Name the tokenizer of states, for caches: if two names are equal, so are the ids of every state."""
        return f"{type(self).__name__}:{self.name}:{self.revision}"


def resolve_model_path(name: str) -> str:
    """Turn ``builtin/<name>`` into its folder in the package; a folder, or a name on the hub, is returned as it is.

    Raises:
        FileNotFoundError: the package ships no such base, or it is no folder and cannot be on the hub.
    """
    if not name.startswith(BUILTIN_PREFIX):
        if not os.path.exists(name):
            try:
                validate_repo_id(name)
            except HFValidationError:
                raise FileNotFoundError(
                    f"model_name_or_path {name!r}: there is no such folder, and on the hub names are owner/name"
                ) from None
        return name
    shipped = {BUILTIN_PREFIX + path.name: path for path in Path(__file__).parents[1].glob("assets/*") if path.is_dir()}
    if name not in shipped:  # which may come from a foreign export, and must lead to no other folder
        known = sorted(path.name for path in shipped.values())
        raise FileNotFoundError(f"no base {name!r} is shipped with the package; there are: {known}")
    return str(shipped[name])


def _letters(text: str) -> str:
    """A text without white space, which tokenizers treat differently, and with one form of each letter."""
    return "".join(unicodedata.normalize("NFKC", text).split())
