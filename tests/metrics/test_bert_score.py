from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoTokenizer, RobertaTokenizer

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


def by_the_package(folder: str, guess: str, truth: str, layer: int, before: str = "") -> float:
    """F1 as bert-score 0.3.13 takes it, token by token: marks have weight 0, and each token may match each."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder)
    vectors, weights = [], []
    for text in (guess, truth):
        ids = tokenizer(before + text.strip())["input_ids"]
        vectors.append(model(torch.tensor([ids]), output_hidden_states=True).hidden_states[layer][0].detach())
        weights.append([float(token not in tokenizer.all_special_ids) for token in ids])
    cosine = [[float(torch.cosine_similarity(a, b, dim=0)) for b in vectors[1]] for a in vectors[0]]
    precision = sum(w * max(row) for w, row in zip(weights[0], cosine, strict=True)) / sum(weights[0])
    columns = zip(*cosine, strict=True)
    recall = sum(w * max(column) for w, column in zip(weights[1], columns, strict=True)) / sum(weights[1])
    return 2 * precision * recall / (precision + recall)


def test_rows_are_scored_as_by_the_authors_package(encoder):
    wanted = [f" {text} " for text in TEXTS[2:] + TEXTS[:2]]
    ours = BERTScore(encoder, batch_size=2).score(TEXTS, wanted)
    theirs = [by_the_package(encoder, guess, truth, 2) for guess, truth in zip(TEXTS, wanted, strict=True)]
    assert ours == pytest.approx(theirs, abs=1e-5)


def test_a_first_word_is_as_any_other_to_roberta(tmp_path):
    """Its tokens hold the space before a word, and the package has one before the first."""
    folder = bert_folder(tmp_path)
    words = ["cat", "\u0120cat"]  # as at the beginning, and after a space
    vocabulary = {
        word: n for n, word in enumerate(["<s>", "<pad>", "</s>", "<unk>", "<mask>", *"cat", "\u0120", *words])
    }
    merges = [("c", "a"), ("ca", "t"), ("\u0120", "cat")]
    vocabulary |= {"ca": len(vocabulary)}
    RobertaTokenizer(vocab=vocabulary, merges=merges).save_pretrained(folder)
    tokenizer, _ = _load(str(folder), "cpu")
    assert isinstance(tokenizer, RobertaTokenizer)
    ours = BERTScore(str(folder)).score(["cat ", "t at"], ["cat cat", "a"])
    assert ours == pytest.approx(
        [by_the_package(str(folder), "cat", "cat cat", 2, " "), by_the_package(str(folder), "t at", "a", 2, " ")]
    )


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


def test_rescaled_by_the_packages_baseline(tmp_path):
    folder = bert_folder(tmp_path / "roberta-large")
    plain = BERTScore(str(folder), layer=1).score(["a cat"], ["the dog"])[0]
    metric = BERTScore(str(folder), rescale=True)
    metric.layer = 1  # this one has two
    assert metric.score(["a cat"], ["the dog"])[0] == pytest.approx((plain - 0.83122575) / (1 - 0.83122575))
    with pytest.raises(ValueError, match="no baseline is known"):
        BERTScore("bert-base-uncased", rescale=True)
    with pytest.raises(ValueError, match="layer 3: set rescale to false"):
        BERTScore("roberta-large", layer=3, rescale=True)
