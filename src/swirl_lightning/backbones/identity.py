"""Hash of a base, by which adapters find the one that they were trained on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

_NOT_IDENTITY = ("_name_or_path", "transformers_version", "torch_dtype", "dtype", "quantization_config")


def base_identity(model: PreTrainedModel) -> dict[str, str]:
    """Hash a base: its architecture, and a sample of its embedding.

    The embedding is never quantised, so the same base gives the same hash at any quantisation; it is
    hashed in bfloat16, so that the dtype of computation does not matter either.
    """
    config = _without(model.config.to_dict(), _NOT_IDENTITY)
    weight: Tensor = model.get_input_embeddings().weight.detach()  # type: ignore[operator]
    rows = weight[:: max(1, len(weight) // 64)].to(torch.bfloat16).float().cpu().contiguous()
    return {
        "architecture": _digest(json.dumps(config, sort_keys=True, default=str).encode()),
        "weights": _digest(rows.numpy().tobytes()),
    }


def _without(config: Any, names: Sequence[str]) -> Any:
    """Return a nested config without some of its keys, at any depth."""
    if not isinstance(config, dict):
        return config
    return {k: _without(v, names) for k, v in config.items() if k not in names}


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]
