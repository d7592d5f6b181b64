"""Hash of a base, by which adapters find the one that they were trained on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file

from swirl_lightning.backbones.base import Backbone
from swirl_lightning.backbones.loading import vocabulary_hash
from swirl_lightning.files import digest

_NOT_IDENTITY = ("_name_or_path", "transformers_version", "torch_dtype", "dtype", "quantization_config")
_ROWS = 64
_BLOCKS, _BLOCK = 1024, 4096  # of a GGUF file


def base_identity(model: PreTrainedModel, backbone: Backbone) -> dict[str, str]:
    """Hash a base: its architecture, a sample of its embedding and of its files, and its vocabulary.

    The same base gives the same hashes at any quantisation and dtype of computation: the embedding is never quantised,
    and weights are hashed in bfloat16. Of a base that is no file of safetensors or GGUF, the embedding stands for all.
    A copy saved in float16 is another base, as its numbers are rounded otherwise.
    """
    config = _without(model.config.to_dict(), _NOT_IDENTITY)
    weight: Tensor = model.get_input_embeddings().weight.detach()  # type: ignore[operator]
    kind = "float16:" if weight.dtype == torch.float16 else ""  # rounded twice: by the dtype, and for the hash
    found = {
        "architecture": digest(json.dumps(config, sort_keys=True, default=str).encode()),
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
    """Hash a sample of all matrices, whatever their names, their order and the files that they are spread over.

    Of each matrix it takes some 64 rows. A tied weight is saved once or twice, and counts once.
    """
    samples, kind = set(), "safetensors"
    for file in files:
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - it is no dictionary
                part = tensors.get_slice(name)
                if len(shape := part.get_shape()) < 2 or not shape[0]:
                    continue
                if "F" not in part.get_dtype():
                    kind = "quantised safetensors"  # its plain copy has other tensors, and serves the same adapters
                first = [slice(1)] * (len(shape) - 2)  # a row of experts in one tensor may have gigabytes
                places = range(0, shape[0], max(1, shape[0] // _ROWS))
                rows = b"".join(_bytes(part[slice(n, n + 1), *first]) for n in places)
                samples.add(hashlib.sha256(rows).digest())
    return f"{kind}:{digest(b''.join(sorted(samples)))}"


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


def _without(config: Any, names: Sequence[str]) -> Any:
    """Return a nested config without some of its keys, at any depth."""
    if not isinstance(config, dict):
        return config
    return {k: _without(v, names) for k, v in config.items() if k not in names}
