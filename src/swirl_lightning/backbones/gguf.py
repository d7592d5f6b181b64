"""GGUF files, the quantised checkpoints of llama.cpp: one file with weights, tokenizer and chat template."""

from __future__ import annotations

import os
import struct
from copy import deepcopy
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tokenizers import pre_tokenizers
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import cached_file

from swirl_lightning.backbones.base import Backbone
from swirl_lightning.backbones.errors import readable, refuse_incomplete, refuse_not_finite
from swirl_lightning.engine.quantization import prepare_quantized

SUFFIX = ".gguf"

_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Bytes of a value in the header, by its type; of others the length is given."""
_STRING, _ARRAY = 8, 9
_DEEPEST = 4  # arrays within arrays


def require_packages() -> None:
    """Raise ImportError, with the cure, where a package that reads GGUF files is missing."""
    missing = [name for name in ("gguf", "accelerate") if find_spec(name) is None]
    if missing:
        raise ImportError(f"a GGUF file needs {' and '.join(missing)}: pip install 'swirl-lightning[gguf]'")


def gguf_path(backbone: Backbone) -> str:
    """Return the path of the backbone's GGUF file on this machine, once it has proved readable.

    Raises:
        ImportError: a package is missing.
        FileNotFoundError: no such file in the folder; the message lists those that are there.
        ValueError: the file is no GGUF file, or is damaged.
        OSError: the hub does not have it (transformers' own message).
    """
    require_packages()
    folder, name = Path(backbone.path), str(backbone.gguf_file)
    if folder.is_dir() and not (folder / name).is_file():
        there = sorted(path.name for path in folder.glob(f"*{SUFFIX}"))
        raise FileNotFoundError(f"{folder} has no file {name!r}; GGUF files in it: {there}; set gguf_file to one")
    path = str(cached_file(backbone.path, name, revision=backbone.revision))
    _pre_tokenizer(path)
    return path


def load_gguf(backbone: Backbone, auto_class: Any, config: Any) -> PreTrainedModel:
    """Load the base of a GGUF file, quantised as the backbone says, all frozen.

    transformers neither quantises a model that it reads from GGUF nor saves it. So its weights, dequantised,
    are handed to a second model.

    Args:
        backbone: names the file.
        auto_class: one of transformers' classes.
        config: the file's.
    """
    from transformers import GgufConfig

    with readable(backbone.name):
        read, found = auto_class.from_pretrained(
            backbone.path,
            output_loading_info=True,
            gguf_file=backbone.gguf_file,
            config=deepcopy(config),
            revision=backbone.revision,
            quantization_config=GgufConfig(dequantize=True),
            dtype=backbone.dtype,
            device_map={"": "cpu"},  # whole weights, where a GPU may have room for 4-bit ones alone
            trust_remote_code=backbone.trust_remote_code,
        )
        refuse_incomplete(backbone.name, found)
        refuse_not_finite(backbone.name, read)
    config.architectures = [type(read).__name__]  # as a folder's config has it: the same base, the same identity
    model = type(read).from_pretrained(
        None,
        config=config,
        state_dict=read.state_dict(),
        **backbone.quantization_options(),
        dtype=backbone.dtype,
        attn_implementation=backbone.attn_implementation,
    )
    return prepare_quantized(model, backbone.dequantize_once)


def set_split(tokenizer: PreTrainedTokenizerBase, path: str) -> None:
    """Split numbers into digits where the file says ``smollm``: transformers 5.23 does not know that splitting.

    Without it, a blank or a line break before a digit becomes other tokens than the model was trained on.
    """
    if _pre_tokenizer(path) == "smollm":
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )


@lru_cache(maxsize=4)
def _pre_tokenizer(path: str) -> str | None:
    """Name of the splitting of text before merges, as the file gives it; ValueError if it cannot be read."""
    from gguf import GGUFReader

    try:
        _check_header(Path(path))
        file = GGUFReader(path)
        if sum(int(tensor.n_bytes) for tensor in file.tensors) > Path(path).stat().st_size:
            raise ValueError("its tensors overlap")  # a small file could stand for any number of large tensors
        field = file.fields.get("tokenizer.ggml.pre")
        return None if field is None else str(field.contents())
    except Exception as error:  # which error a damaged file raises depends on the place of the damage
        raise ValueError(
            f"{path} cannot be read as a GGUF file ({type(error).__name__}: {error}); is it complete?"
        ) from None


def _check_header(path: Path) -> None:
    """Raise ValueError if the header gives a length that the file does not have: ``gguf`` would count up to it.

    Layout: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
    """
    size = path.stat().st_size
    with path.open("rb") as file:

        def number(letter: str) -> int:
            found = file.read(struct.calcsize(letter))
            if len(found) < struct.calcsize(letter):
                raise ValueError("it ends within its header")
            return int(struct.unpack(order + letter, found)[0])

        def skip(count: int) -> None:
            if count > size - file.tell():
                raise ValueError(f"its header has a length of {count:,}, more than the file has bytes")
            file.seek(count, os.SEEK_CUR)

        def pass_value(kind: int, depth: int = 0) -> None:
            if kind in _BYTES:
                skip(_BYTES[kind])
            elif kind == _STRING:
                skip(number("Q"))
            elif kind == _ARRAY and depth < _DEEPEST:
                inner, count = number("I"), number("Q")
                if inner in _BYTES:
                    skip(count * _BYTES[inner])
                else:
                    for _ in range(count):  # ends with the file: each takes some bytes of it
                        pass_value(inner, depth + 1)
            else:
                raise ValueError(f"its header has a value of type {kind}, {depth} deep")

        order = "<"
        if file.read(4) != b"GGUF":
            raise ValueError("it does not begin with GGUF")
        if number("I") > 0xFFFF:
            order = ">"
        number("Q")
        for _ in range(number("Q")):
            skip(number("Q"))
            pass_value(number("I"))
