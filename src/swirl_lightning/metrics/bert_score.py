"""BERTScore of predicted texts.

torchmetrics 1.9 has one too, but puts the embeddings of a batch back in the wrong order: it sorts texts by
length and then applies the sorting permutation once more instead of its inverse, which pairs predictions
with other rows' references. For single pairs both agree (see the tests).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from swirl_lightning.engine.ranges import check_ranges
from swirl_lightning.metrics.row_mean import RowMean

LAYERS = {
    "roberta-large": 17,
    "roberta-base": 10,
    "bert-base-uncased": 9,
    "distilbert-base-uncased": 5,
    "deberta-xlarge-mnli": 40,
}
"""Layer that the bert-score package takes, by the model's name; the last one for other models."""
BASELINES = {"roberta-large": 0.83122575}
"""Mean F1 of pairs of English sentences that have nothing to do with each other, at that layer: the package's."""


class BERTScore(RowMean):
    """BERTScore F1 (Zhang et al. 2020), without IDF weights, mean over rows.

    As the authors' package bert-score computes it: marks such as ``[CLS]`` have no weight, but tokens may match them.
    A text is cut at the length that the model can read (512 tokens for most).

    Args:
        model: hub name or folder of an encoder; loaded when the first row is scored.
        name: as for `RowMean`.
        layer: hidden layer to compare; None as in `LAYERS`.
        batch_size: pairs in one forward pass.
        rescale: give (F1 - b) / (1 - b), where b is the encoder's value in :data:`BASELINES`.
        kwargs: as for `RowMean`.

    Raises:
        ValueError: ``rescale``, and the encoder, or this layer of it, has no baseline.
    """

    def __init__(
        self,
        model: str,
        name: str = "bert_score",
        layer: int | None = None,
        batch_size: int = 16,
        rescale: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(name, **kwargs)
        check_ranges("BERTScore", locals(), layer="whole (-inf, inf) or null", batch_size="whole [1, inf)")
        short = Path(model).name
        if rescale and (short not in BASELINES or layer not in (None, LAYERS[short])):
            raise ValueError(f"BERTScore: no baseline is known of {model!r}, layer {layer}: set rescale to false")
        self.model_name, self.layer, self.batch_size = model, layer, batch_size
        self.baseline = BASELINES[short] if rescale else 0.0

    def score(self, predicted: Sequence[str], wanted: Sequence[str]) -> list[float]:
        """Compute F1 of each pair, in [-1, 1]."""
        layer = LAYERS.get(Path(self.model_name).name, -1) if self.layer is None else self.layer
        values: list[float] = []
        for start in range(0, len(predicted), self.batch_size):
            part = slice(start, start + self.batch_size)
            one, other = (
                _embed(self.model_name, str(self.scores.device), layer, list(texts[part]))
                for texts in (predicted, wanted)
            )
            values += ((f1(*one, *other) - self.baseline) / (1 - self.baseline)).tolist()
        return values


def missing_model(model: str | None, option: str = "bert", example: str = "roberta-large") -> str | None:
    """Return the reason why a model cannot serve a metric, without loading its weights; None if it can.

    Args:
        model: hub name or folder.
        option: of the DataModule, which names the model.
        example: of its value.
    """
    from transformers import AutoTokenizer

    from swirl_lightning.backbones.errors import readable
    from swirl_lightning.backbones.loading import plain_config

    if not model:
        return f"set {option}, for example to {example}"
    try:
        plain_config(model)
        with readable(model):
            AutoTokenizer.from_pretrained(model, trust_remote_code=False)
    except (OSError, ValueError) as error:
        return f"{model!r} cannot be loaded ({str(error).splitlines()[0]})"
    return None


def f1(predicted: Tensor, predicted_weights: Tensor, wanted: Tensor, wanted_weights: Tensor) -> Tensor:
    """Match unit vectors greedily: (B, P, H), (B, P), (B, R, H), (B, R) -> (B,).

    Vectors of padding are zero and take part in the maximum, as do those without weight.
    """
    cosine = torch.einsum("bph,brh->bpr", predicted, wanted)
    precision = (cosine.amax(2) * predicted_weights).sum(1) / predicted_weights.sum(1)
    recall = (cosine.amax(1) * wanted_weights).sum(1) / wanted_weights.sum(1)
    return (2 * precision * recall / (precision + recall)).nan_to_num(0.0)


@torch.no_grad()
def _embed(name: str, device: str, layer: int, texts: list[str]) -> tuple[Tensor, Tensor]:
    """Compute unit vectors (B, L, H), zero at padding, and their weights (B, L): 0 for padding and special tokens."""
    from transformers import GPT2Tokenizer, RobertaTokenizer

    tokenizer, model = _load(name, device)
    longest = min(tokenizer.model_max_length, model.config.max_position_embeddings, 512)
    mark = " " if isinstance(tokenizer, GPT2Tokenizer | RobertaTokenizer) else ""  # a first word is as any other
    texts = [mark + text.strip() for text in texts]
    batch = tokenizer(
        texts,
        padding=True,
        truncation=True,
        max_length=longest,
        return_special_tokens_mask=True,
        return_tensors="pt",
    ).to(device)
    mask = batch["attention_mask"]
    hidden = model(batch["input_ids"], batch["attention_mask"], output_hidden_states=True).hidden_states[layer]
    return torch.nn.functional.normalize(hidden.float(), dim=-1) * mask[..., None], mask * (
        1 - batch["special_tokens_mask"]
    )


@lru_cache(maxsize=2)
def _load(name: str, device: str) -> tuple[Any, Any]:
    """Load tokenizer and encoder, outside the metric: copies and checkpoints of metrics hold no model."""
    from transformers import AutoModel

    from swirl_lightning.backbones.loading import load_plain

    return load_plain(name, AutoModel, device)
