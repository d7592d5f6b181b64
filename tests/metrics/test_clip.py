"""CLIP scores and category means against values computed by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer, CLIPImageProcessorPil, CLIPModel

from support.image_features import Vectors, X, Y, Z, colour, row
from support.image_world import block_image, clip_folder
from swirl_lightning.metrics.clip import CLIPEncoder, CLIPSimilarity


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(clip_folder(tmp_path_factory.mktemp("clip")))


@pytest.fixture(scope="module")
def encoder(folder):
    return CLIPEncoder(folder, device="cpu", batch_size=2)


def test_features_are_those_of_transformers(folder, encoder, tmp_path):
    images = [block_image(n, size) for n, size in enumerate([(16, 16), (40, 25), (23, 50), (9, 12)])]
    model = CLIPModel.from_pretrained(folder).eval()
    processor = CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size=16)
    with torch.no_grad():
        wanted = model.get_image_features(**processor(images, return_tensors="pt")).pooler_output
        ids = AutoTokenizer.from_pretrained(folder)(
            ["a cat", "a dog " * 30], padding=True, truncation=True, max_length=20, return_tensors="pt"
        )
        words = model.get_text_features(**ids).pooler_output
    assert torch.allclose(encoder.images(images), wanted / wanted.norm(dim=-1, keepdim=True), atol=1e-5)
    assert torch.allclose(encoder.texts(["a cat", "a dog " * 30]), words / words.norm(dim=-1, keepdim=True), atol=1e-5)
    assert torch.isfinite(encoder.images([Image.new("RGB", (60_000, 1), (9, 9, 9))])).all()
    assert encoder.images([block_image(0, (40, 8))]).norm() == pytest.approx(1, abs=1e-5)
    assert torch.equal(encoder.images(images[:1], squashed=True), encoder.images(images[:1]))  # nothing to bring
    whole = torch.from_numpy(np.asarray(images[1]).copy()).permute(2, 0, 1)[None].float() / 255
    small = torch.nn.functional.interpolate(whole, 16, mode="bicubic", align_corners=False)
    mean, deviation = (torch.tensor(v)[:, None, None] for v in (processor.image_mean, processor.image_std))
    with torch.no_grad():
        wanted = model.get_image_features(pixel_values=(small - mean) / deviation).pooler_output
    assert torch.allclose(encoder.images([images[1]], squashed=True), wanted / wanted.norm(), atol=1e-5)
    with pytest.raises(OSError, match="cannot load CLIP from"):
        CLIPEncoder(str(tmp_path)).images(images)


def test_similarity_by_hand():
    metric = CLIPSimilarity(Vectors(), ["a", "b"])
    metric.update([Y, X, None], [row(X, Y, task="a"), row(X, Y, task="a"), row(X, Y, task="b")])
    metric.update([Z], [row(X, None, task="b")])
    metric.update([colour(60, 80, 0)], [row(X, Y, task="other")])
    found = {k: float(v) for k, v in metric.compute().items()}
    assert found["clip_target"] == pytest.approx((1 + 0 + 0 + 0.8) / 4)
    assert found["clip_source"] == pytest.approx((0 + 1 + 0 + 0 + 0.6) / 5)
    assert found["clip_nearer_target"] == pytest.approx(2 / 4)  # a copy of the source is not nearer
    assert found["clip_target/a"] == pytest.approx(0.5)
    assert found["clip_target/b"] == 0  # only the missing output
    assert found["clip_source/b"] == 0


def test_the_mean_of_the_means_of_categories():
    metric = CLIPSimilarity(Vectors(), ["a", "b", "c"], averages={"mean over tasks": ["a", "b", "c"], "none": ["c"]})
    metric.update([Y, Y, X, Y], [row(X, Y, task=task) for task in "aaab"])
    found = {k: float(v) for k, v in metric.compute().items() if k.startswith("clip_target")}
    names = ("clip_target", "clip_target/a", "clip_target/b", "clip_target/mean over tasks")
    assert found == pytest.approx(dict(zip(names, (3 / 4, 2 / 3, 1, 5 / 6), strict=True)))


def test_two_halves_reduce_to_the_whole():
    """States are added, as in a reduction over devices, and then computed."""
    rows = [row(X, Y, task=t) for t in "aab"]
    whole, one, two = (CLIPSimilarity(Vectors(), ["a", "b"]) for _ in range(3))
    whole.update([Y, Z, X], rows)
    one.update([Y], rows[:1])
    two.update([Z, X], rows[1:])
    one.sums, one.counts = one.sums + two.sums, one.counts + two.counts
    assert {k: float(v) for k, v in one.compute().items()} == {k: float(v) for k, v in whole.compute().items()}


def test_values_without_a_row_are_left_out():
    assert CLIPSimilarity(Vectors(), ["x"]).compute() == {}
