"""Hash of a base, by which adapters find the one that they were trained on."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file

from swirl_lightning.backbones.base import Backbone
from swirl_lightning.backbones.loading import vocabulary_hash
from swirl_lightning.files.hashes import digest

_NOT_IDENTITY = {"use_cache", "quantization_config", *(field.name for field in dataclasses.fields(PreTrainedConfig))}
_READABLE = {"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "I64", "I32", "I16", "I8", "U8", "BOOL"}
_ROWS = 64
_BLOCKS, _BLOCK = 1024, 4096  # of a GGUF file


def base_identity(model: PreTrainedModel, backbone: Backbone) -> dict[str, str]:
    """Hash a base: its architecture, samples of its embedding and of its files, and its vocabulary.

    The same base gives the same hashes at any quantisation and dtype of computation: the embedding is never quantised,
    and weights are hashed in bfloat16. Of a base that is no file of safetensors or GGUF, the embedding stands for all.
    A copy saved in float16 is another base, as its numbers are rounded otherwise.
    """
    weight: Tensor = model.get_input_embeddings().weight.detach()  # type: ignore[operator]
    kind = "float16:" if weight.dtype == torch.float16 else ""  # rounded twice: by the dtype, and for the hash
    found = {
        "architecture": "fields:" + digest(json.dumps(_fields(model.config), sort_keys=True, default=str).encode()),
        "weights": kind + digest(_bytes(weight[:: max(1, len(weight) // _ROWS)])),
    }
    if files := weight_files(backbone):
        found["files"] = _sample(files[0]) if backbone.gguf_file is not None else _tensors(files)
    if (tokenizer := getattr(backbone, "tokenizer", None)) is not None:
        found["vocabulary"] = vocabulary_hash(tokenizer)
    return found


def differing(saved: Mapping[str, str], here: Mapping[str, str]) -> list[str]:
    """Return what two bases differ in: architecture, weights, vocabulary.

    What one of them has no hash of is not compared, nor are hashes of two kinds (``kind:hash``).
    """
    names = {"architecture": "architecture", "weights": "weights", "files": "weights", "vocabulary": "vocabulary"}
    parts = [part for part in names if part in saved and part in here]
    comparable = [part for part in parts if saved[part].rpartition(":")[0] == here[part].rpartition(":")[0]]
    return list(dict.fromkeys(names[part] for part in comparable if saved[part] != here[part]))


def weight_files(backbone: Backbone) -> list[Path]:
    """Return the files that transformers reads a base's weights from; none if it has other ones, as ``.bin``."""

    def found(name: str) -> Path | None:
        path = cached_file(
            backbone.path,
            name,
            revision=backbone.revision,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
        return None if path is None else Path(path)

    whole = found(backbone.gguf_file or SAFE_WEIGHTS_NAME)
    if whole is not None:
        return [whole]
    index = found(SAFE_WEIGHTS_INDEX_NAME)
    names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()) if index else ()
    return [path for name in sorted(names) if (path := found(name)) is not None]


def _tensors(files: Sequence[Path]) -> str:
    """Hash a sample of all weights, by their layers, whatever their order and the files that they are spread over.

    Of each it takes some 64 rows, of a vector all. A tied weight is saved once or twice, and counts once.
    """
    samples, kind = set(), "tensors"
    for file in files:
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - it is no dictionary
                part = tensors.get_slice(name)
                shape, dtype = part.get_shape(), part.get_dtype()
                # Masks and frequencies are in some copies and not in others.
                taken = name.endswith(".weight") if len(shape) == 1 else len(shape) > 1 and not name.endswith(".bias")
                if 0 in shape or not taken:
                    continue
                if "F" not in dtype:
                    kind = "quantised tensors"  # its plain copy has other ones, and serves the same adapters
                if dtype not in _READABLE:
                    continue
                first = [slice(1)] * (len(shape) - 2)  # a row of experts in one tensor may have gigabytes
                step = max(1, shape[0] // _ROWS)
                starts = range(0, shape[0], step)
                places = [slice(n, n + 1) for n in starts] if len(shape) > 1 and step > 1 else [slice(None)]
                rows = _bytes(torch.cat([part[place, *first] for place in places]))
                samples.add(hashlib.sha256(_place(name).encode() + b"\0" + rows).digest())
    return f"{kind}:{digest(b''.join(sorted(samples)))}"


def _place(name: str) -> str:
    """A weight's name from its layer's number on: what stands before it depends on the class that saved it."""
    numbered = re.search(r"(?<![^.])[0-9]+\..*", name)
    return numbered[0] if numbered else ""


def _sample(file: Path) -> str:
    """Hash blocks all over a GGUF file."""
    size, hashed = file.stat().st_size, hashlib.sha256()
    with file.open("rb") as content:
        for place in range(0, size, max(_BLOCK, size // _BLOCKS)):
            content.seek(place)
            hashed.update(content.read(_BLOCK))
    return f"gguf:{hashed.hexdigest()[:16]}"


def _bytes(values: Tensor) -> bytes:
    """A tensor's content; floats as those of bfloat16."""
    if values.is_floating_point():
        values = values.to(torch.bfloat16).float()
    return values.cpu().contiguous().numpy().tobytes()


def _fields(config: PreTrainedConfig) -> dict[str, Any]:
    """Return what a config says of the computation: the fields of its class, not what programs leave in the file."""
    values = config.to_dict()
    names = {field.name for field in dataclasses.fields(config)} - _NOT_IDENTITY or values.keys() - _NOT_IDENTITY
    parts = {name: getattr(config, name, None) for name in names}
    nested = {name: _fields(part) for name, part in parts.items() if isinstance(part, PreTrainedConfig)}
    return {"model_type": config.model_type} | {name: values.get(name) for name in names} | nested
