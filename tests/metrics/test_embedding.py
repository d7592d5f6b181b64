from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from support.text_suites import bert_folder
from swirl_lightning.metrics import embedding
from swirl_lightning.metrics.embedding import MINILM, EmbeddingSimilarity, embed, missing_encoder
from swirl_lightning.transition import Transition

TEXTS = ["a cat", "the dog sat on a mat", "b", "an owl and a pussycat", "you, I"]
HERE = missing_encoder(MINILM)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> str:
    return str(bert_folder(tmp_path_factory.mktemp("bert")))


@torch.no_grad()
def documented(folder: str, text: str) -> torch.Tensor:
    """The recipe of all-MiniLM-L6-v2's model card, one text at a time."""
    batch = AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt")
    tokens = AutoModel.from_pretrained(folder)(**batch)[0]
    mask = batch["attention_mask"].unsqueeze(-1).expand(tokens.size()).float()
    mean = torch.sum(tokens * mask, 1) / torch.clamp(mask.sum(1), min=1e-9)
    return torch.nn.functional.normalize(mean, p=2, dim=1)[0]


def test_the_documented_recipe(encoder):
    """Texts are in batches with padding, sorted by length."""
    truths = TEXTS[2:] + TEXTS[:2]
    found = EmbeddingSimilarity(encoder, batch_size=2).score(TEXTS, truths)
    for value, guess, truth in zip(found, TEXTS, truths, strict=True):
        assert value == pytest.approx(float(documented(encoder, guess) @ documented(encoder, truth)), abs=1e-5)
    assert max(found) < 0.999  # it tells them apart


def test_equal_texts_score_one_and_missing_ones_zero(encoder):
    metric = EmbeddingSimilarity(encoder)
    metric.update([*TEXTS, "", None], [Transition("x", text) for text in [*TEXTS, "a", "b"]])
    assert float(metric.compute()["embedding_similarity"]) == pytest.approx(5 / 7)
    assert "model" not in str(metric.state_dict())


def test_a_long_text_is_read_to_its_end(encoder):
    """64 tokens are a window here; two equal windows have the mean of one."""
    start = "ab" * 31
    same, other = EmbeddingSimilarity(encoder).score([start * 2 + "x" * 30] * 2, [start * 2 + end * 30 for end in "xy"])
    assert same == pytest.approx(1)
    assert other < 0.999
    assert torch.allclose(embed(encoder, "cpu", [start * 2])[0], documented(encoder, start), atol=1e-5)


def test_windows_are_as_long_as_the_encoder_says(encoder, tmp_path):
    folder = Path(shutil.copytree(encoder, tmp_path / "short"))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 8}))
    tokenizer, model = AutoTokenizer.from_pretrained(encoder), AutoModel.from_pretrained(encoder)
    with torch.no_grad():  # six bytes between the first and the last token, then two
        total = sum(model(**tokenizer(part, return_tensors="pt"))[0].sum(1)[0] for part in ("abcdef", "gh"))
    found = embed(str(folder), "cpu", ["abcdefgh"])[0]
    assert torch.allclose(found, torch.nn.functional.normalize(total, dim=0), atol=1e-5)


def test_an_encoder_that_cannot_serve_is_named(encoder, tmp_path, monkeypatch):
    assert missing_encoder(encoder) is None
    assert "cannot be loaded" in missing_encoder(str(tmp_path))
    folder = Path(shutil.copytree(encoder, tmp_path / "cls"))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_mean_tokens": False}))
    assert "does not pool by the mean" in missing_encoder(str(folder))
    monkeypatch.setattr(embedding, "find_spec", lambda name: None)
    assert missing_encoder(MINILM) == "pip install 'swirl-lightning[embedding]'"


@pytest.mark.skipif(HERE is not None, reason=f"{MINILM} is not installed: {HERE}")
def test_minilm_is_the_published_one():
    one, other = "This is an example sentence", "Each sentence is converted"  # the model card's
    folder = embedding._resolve(MINILM)
    vectors = embed(MINILM, "cpu", [one, other])
    assert torch.allclose(vectors, torch.stack([documented(folder, one), documented(folder, other)]), atol=1e-6)
    assert vectors[0, :3].tolist() == pytest.approx([0.0677, 0.0635, 0.0487], abs=1e-4)
    near, far = EmbeddingSimilarity().score(["The door is open."] * 2, ["The door is now open.", "A dog barks."])
    assert near > 0.9 > 0.4 > far


@pytest.mark.skipif(HERE is not None, reason=f"{MINILM} is not installed: {HERE}")
def test_other_weights_are_refused(tmp_path, monkeypatch):
    folder = Path(shutil.copytree(embedding._resolve(MINILM), tmp_path / "model"))
    with open(folder / "model.safetensors", "r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x01")
    monkeypatch.setattr(embedding, "_resolve", lambda model: str(folder))
    embedding._load.cache_clear()
    with pytest.raises(ValueError, match=r"has SHA-256 .*expected 53aa.*install swirl-lightning\[embedding\] anew"):
        embed(MINILM, "cpu", ["a"])


@pytest.mark.parametrize("content", ["{", "[1]", '{"max_seq_length": "x"}'])
def test_damaged_settings_name_the_encoder(tmp_path, content):
    folder = bert_folder(tmp_path)
    (folder / "sentence_bert_config.json").write_text(content)
    with pytest.raises(ValueError, match=re.escape(str(folder))):
        EmbeddingSimilarity(str(folder)).score(["a"], ["b"])
