"""Functions of several backbones: loading of a base and its tokenizer, and the ids that are plain text."""

from __future__ import annotations

import json
import string
from collections.abc import Collection, Sequence
from typing import Any, NoReturn

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import nn
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import find_adapter_config_file

from swirl_lightning.backbones.base import Backbone
from swirl_lightning.backbones.errors import readable, refuse_incomplete, refuse_not_finite, refuse_strange_shards
from swirl_lightning.backbones.gguf import gguf_path, set_split
from swirl_lightning.engine.grammar import TokenIds
from swirl_lightning.engine.quantization import import_bitsandbytes, prepare_quantized
from swirl_lightning.files.hashes import digest

_UNQUANTISED = 0.1  # share of the weights from which on it is told

FAMILIES = {
    "chameleon": "Chameleon",
    "emu3": "Emu3",
    "qwen2_5_vl": "VLM",
    "qwen2_vl": "VLM",
    "smolvlm": "VLM",
}
"""Classes of this package by model type, for messages; none of these is a causal language model."""


def misfit(backbone: Backbone, problem: str) -> NoReturn:
    """Raise the ValueError of a checkpoint that is not of the backbone's family."""
    raise ValueError(f"{backbone.name!r} cannot serve as {type(backbone).__name__}: {problem}")


def load_config(backbone: Backbone, model_types: Collection[str] | None = None) -> Any:
    """Load the config of a checkpoint.

    Args:
        backbone: names the checkpoint.
        model_types: the family's; None takes any.

    Raises:
        ValueError: it is of another family.
        ValueError: its config asks for code of the hub, and the backbone trusts none; or an adapter lies beside it.
        OSError: there is no such checkpoint (transformers' own message).
        ImportError: it is a GGUF file, and what reads those is missing.
    """
    if backbone.gguf_file is not None:
        gguf_path(backbone)
    with readable(backbone.name):
        config = _read(backbone, AutoConfig)
    refuse_adapter(backbone.path, backbone.revision)
    refuse_strange_shards(backbone.path)
    if not backbone.trust_remote_code:
        refuse_kernels(config, backbone.name)
    quantized = getattr(config, "quantization_config", None)
    given = quantized if isinstance(quantized, dict) else {}
    method = "bitsandbytes to 8 bits" if given.get("load_in_8bit") else given.get("quant_method")
    if method not in (None, "bitsandbytes"):
        misfit(backbone, f"its weights are quantised already, by {method!r}; give the model that it was made from")
    if model_types is not None and config.model_type not in model_types:
        cure = family_cure(config.model_type)
        misfit(backbone, f"it holds a {config.model_type!r} model, needed: {sorted(model_types)}; {cure}")
    return config


def family_cure(kind: str) -> str:
    """Name the class for a type of model (``model_type`` of its config), for messages."""
    known = FAMILIES.get(kind)
    own = "none is here for that family: write one, as docs/backbones.md says"
    return f"use swirl_lightning.backbones.{known}" if known else own


def refuse_kernels(config: Any, name: str) -> None:
    """Raise ValueError if the config of a model asks for attention that transformers would load as code from the hub.

    It does so for ``owner/repository@revision`` wherever the package ``kernels`` is installed, also over the
    ``attn_implementation`` that it is called with.
    """
    parts = [config, *(getattr(config, part, None) for part in getattr(config, "sub_configs", {}))]
    for asked in (getattr(part, "_attn_implementation", None) for part in parts):
        if isinstance(asked, str) and "/" in asked:
            raise ValueError(f"the config.json of {name!r} asks for code of the hub, {asked!r}: remove that entry")


def refuse_adapter(name: str, revision: str | None = None) -> None:
    """Raise ValueError if an adapter of PEFT lies beside a model.

    Transformers loads the model that ``adapter_config.json`` names in place of one of the hub, whose own config was
    looked at, and puts the adapter in, which no run would use.
    """
    if find_adapter_config_file(name, revision=revision) is not None:
        raise ValueError(
            f"{name!r} holds an adapter (adapter_config.json), and what is needed is a whole model: give the folder or "
            "the hub name of one, or of a copy without that file"
        )


def plain_config(name: str) -> Any:
    """Load the config of a model that runs no code of its own; ValueError where it asks for some, or for another."""
    with readable(name):
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)  # or transformers asks on the terminal
    refuse_adapter(name)
    refuse_strange_shards(name)
    refuse_kernels(config, name)
    return config


def load_plain(
    name: str, auto_class: Any, device: str | torch.device
) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    """Load tokenizer and model, in float32 and frozen, of a model that runs no code of its own, such as a metric's.

    Args:
        name: hub name or folder.
        auto_class: one of transformers' classes.
        device: of the model.

    Raises:
        OSError: there is no such model.
        ValueError: it is damaged, lacks weights, or asks for code.
    """
    plain_config(name)
    with readable(name):
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        model, found = auto_class.from_pretrained(name, output_loading_info=True, dtype=torch.float32)
    found["missing_keys"] = [key for key in found["missing_keys"] if not key.startswith("pooler.")]  # nobody asks it
    refuse_incomplete(name, found)
    refuse_not_finite(name, model)
    return tokenizer, model.eval().requires_grad_(False).to(device)


def load_base(backbone: Backbone, auto_class: Any) -> PreTrainedModel:
    """Load the base by one of transformers' classes, on torch's default device, quantised as the backbone says."""
    import_bitsandbytes()  # before transformers does
    with readable(backbone.name):
        model, found = auto_class.from_pretrained(
            backbone.path,
            output_loading_info=True,
            revision=backbone.revision,
            **backbone.quantization_options(),
            dtype=backbone.dtype,
            attn_implementation=backbone.attn_implementation,
            trust_remote_code=backbone.trust_remote_code,
        )
        refuse_incomplete(backbone.name, found)
        refuse_not_finite(backbone.name, model)
        prepared = prepare_quantized(model, backbone.dequantize_once)
    _tell_unquantised(backbone, prepared)
    return prepared


def _tell_unquantised(backbone: Backbone, model: PreTrainedModel) -> None:
    """Warn where many weights of a base that is to be 4-bit are not, as nobody would find out before memory ends.

    bitsandbytes quantises linear layers alone; the experts of most mixtures are one parameter of three dimensions.
    """
    if backbone.quantization is None:
        return
    meant = tuple(f"{name}." for name in backbone.keep_unquantized)
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    packed, left = 0, {}
    for name, weight in model.named_parameters():
        if (state := getattr(weight, "quant_state", None)) is not None:
            packed += state.shape.numel()
        elif weight.ndim > 1 and id(weight) not in tables and not name.startswith(meant):
            left[name] = weight
    size = sum(weight.numel() for weight in left.values())
    if size > _UNQUANTISED * (size + packed):
        gib = sum(weight.nbytes for weight in left.values()) / 2**30
        largest = max(left, key=lambda name: left[name].numel())
        rank_zero_warn(
            f"{backbone.name!r}: {size / (size + packed):.0%} of its layers' weights stay in {backbone.dtype} "
            f"({gib:.2f} GiB; {largest}, say), as {backbone.quantization} holds linear layers alone"
        )


def load_tokenizer(backbone: Backbone, marks: Sequence[str] = (), bos: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer that lies beside the model.

    Args:
        backbone: names the checkpoint.
        marks: tokens that must be in its vocabulary.
        bos: a BOS token is needed, too. (EOS always is.)

    Raises:
        ValueError: it lacks one of them.
    """
    path = gguf_path(backbone) if backbone.gguf_file is not None else None
    with readable(backbone.name):
        tokenizer: PreTrainedTokenizerBase = _read(backbone, AutoTokenizer)
        tokenizer.encode(string.printable, add_special_tokens=False)  # some damage shows in use
    if path is not None:
        set_split(tokenizer, path)
    vocabulary = tokenizer.get_vocab()
    lacking = [mark for mark in marks if mark not in vocabulary]
    lacking += [n for n in ("eos_token", *["bos_token"] * bos) if getattr(tokenizer, n) is None]
    if lacking:
        misfit(
            backbone,
            f"its tokenizer lacks {', '.join(lacking)}; use the tokenizer files of that family "
            "(eos_token and bos_token are set in tokenizer_config.json)",
        )
    return tokenizer


def _read(backbone: Backbone, auto_class: Any) -> Any:
    """Read what lies beside the weights by one of transformers' classes."""
    return auto_class.from_pretrained(
        backbone.path,
        gguf_file=backbone.gguf_file,
        revision=backbone.revision,
        trust_remote_code=backbone.trust_remote_code,
    )


def vocabulary_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """Hash the tokens and their ids."""
    return digest(json.dumps(sorted(tokenizer.get_vocab().items())).encode())


def special_ids(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Return the ids that are no text: named special tokens, and added ones that are marked special."""
    added = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    return added | set(tokenizer.all_special_ids)


def encode_plain(tokenizer: PreTrainedTokenizerBase, text: str) -> TokenIds:
    """Encode data as plain text: ``<|im_end|>`` in a state or an action is ten characters, not the end of a turn."""
    ids: TokenIds = tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
    return ids
