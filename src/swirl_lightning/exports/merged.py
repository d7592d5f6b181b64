"""Whole weights of each model, which plain transformers read."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path

import torch

from swirl_lightning.exports.card import merged_card
from swirl_lightning.exports.folder import readable
from swirl_lightning.exports.settings import settings_of
from swirl_lightning.files.writing import written_to
from swirl_lightning.world_model_module import WorldModelModule


@torch.no_grad()
def write_merged(module: WorldModelModule, folder: Path, data: str, results: Mapping[str, Mapping[str, float]]) -> None:
    """Write ``folder/<adapter>/`` with the base's weights, as it was trained on, plus the adapter's, and its tokenizer.

    A quantised base is written dequantised: its adapter has learned to make up for that rounding, and fits no other.
    Needs memory for the base once more, in the dtype of computation.

    Args:
        module: with its base loaded.
        folder: to write.
        data: name of the training data, for the card.
        results: rows of a table, for the card.
    """
    plain = copy.copy(module.backbone)
    plain.quantization = None
    model = plain.load_model()
    weights = dict(model.named_parameters())
    for name in module.adapters.trainable:
        for path, weight in module.adapters.merged_weights(name):
            weights[f"{path}.weight"].data.copy_(weight)
        with written_to(folder / name):
            model.save_pretrained(folder / name)
        tokenizer = getattr(module.backbone, "tokenizer", None)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder / name)
    card = merged_card(settings_of(module), module.backbone, module.adapters.trainable, data, results)
    (folder / "README.md").write_text(card, encoding="utf-8")
    readable(folder)
