from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from support.text_suites import bert_folder
from swirl_lightning.metrics.bert_score import BERTScore, _load, f1, missing_model
from swirl_lightning.transition import Transition

TEXTS = ["a cat", "the dog sat on a mat", "b", "an owl and a pussycat", "you, I"]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> str:
    return str(bert_folder(tmp_path_factory.mktemp("bert")))


def test_greedy_matching_by_hand():
    a, b, nothing = [1.0, 0.0], [0.6, 0.8], [0.0, 0.0]
    predicted, wanted = torch.tensor([[nothing, a, b]]), torch.tensor([[nothing, a]])
    # precision (1 + 0.6) / 2, recall 1
    value = f1(predicted, torch.tensor([[0, 1, 1]]), wanted, torch.tensor([[0, 1]]))
    assert float(value) == pytest.approx(2 * 0.8 / 1.8)
    orthogonal = torch.tensor([[[0.0, 1.0]]])
    assert float(f1(torch.tensor([[a]]), torch.ones(1, 1), orthogonal, torch.ones(1, 1))) == 0


def test_rows_equal_torchmetrics_one_at_a_time(encoder):
    from torchmetrics.functional.text import bert_score
    from transformers import AutoModel, AutoTokenizer

    wanted = TEXTS[2:] + TEXTS[:2]
    ours = BERTScore(encoder, batch_size=2).score(TEXTS, wanted)
    model, tokenizer = AutoModel.from_pretrained(encoder), AutoTokenizer.from_pretrained(encoder)
    for value, guess, truth in zip(ours, TEXTS, wanted, strict=True):
        theirs = bert_score([guess], [truth], model=model, user_tokenizer=tokenizer, num_layers=2, max_length=64)
        assert value == pytest.approx(float(theirs["f1"]), abs=1e-5)


def test_equal_texts_score_one_and_missing_ones_zero(encoder):
    metric = BERTScore(encoder)
    metric.update([*TEXTS, "", None], [Transition("x", text) for text in [*TEXTS, "a", "b"]])
    assert float(metric.compute()["bert_score"]) == pytest.approx(5 / 7)
    assert "model" not in str(metric.state_dict())


def test_long_texts_are_cut(encoder):
    metric = BERTScore(encoder)
    metric.update(["a " * 500], [Transition("x", "a " * 400)])
    assert float(metric.compute()["bert_score"]) == pytest.approx(1)


def test_missing_model(encoder, tmp_path):
    assert missing_model(encoder) is None
    assert missing_model(None) == "set bert, for example to roberta-large"
    assert "cannot be loaded" in missing_model(str(tmp_path))
    assert missing_model(None, "clip", "a/b") == "set clip, for example to a/b"


@pytest.mark.parametrize(
    ("changed", "told"), [(None, "lack 1 weights .*would be random"), (float("nan"), "other values than finite")]
)
def test_an_encoder_with_other_weights_than_published_is_refused(tmp_path, changed, told):
    folder = bert_folder(tmp_path)
    weights = load_file(folder / "model.safetensors")
    key = "encoder.layer.0.attention.self.query.weight"
    weights.pop(key)
    if changed is not None:
        weights[key] = torch.full((32, 32), changed)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=told):
        BERTScore(str(folder)).score(["a"], ["b"])


def test_a_pooler_is_not_asked_for(tmp_path):
    """RoBERTa's files have none."""
    folder = bert_folder(tmp_path)
    before = BERTScore(str(folder)).score(TEXTS[:2], TEXTS[2:4])
    weights = {k: v for k, v in load_file(folder / "model.safetensors").items() if not k.startswith("pooler.")}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    _load.cache_clear()
    assert BERTScore(str(folder)).score(TEXTS[:2], TEXTS[2:4]) == before
