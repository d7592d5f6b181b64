"""CLIP scores, ByteMorph's directions, DiscEdit and category means against values computed by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer, CLIPImageProcessorPil, CLIPModel

from support.image_world import block_image, clip_folder
from swirl_lightning.benchmarks.aurora.disc_edit import DiscEdit
from swirl_lightning.benchmarks.bytemorph.metrics import ByteMorphDirections, cosine
from swirl_lightning.metrics.clip import CLIPEncoder, CLIPSimilarity
from swirl_lightning.transition import Transition


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(clip_folder(tmp_path_factory.mktemp("clip")))


@pytest.fixture(scope="module")
def encoder(folder):
    return CLIPEncoder(folder, device="cpu", batch_size=2)


class Vectors:
    """An encoder with features of our choice: an image's are its first pixel, scaled to length 1."""

    def images(self, images):
        raw = torch.tensor(np.array([p.getpixel((0, 0)) for p in images]), dtype=torch.float32) - 128
        return torch.nn.functional.normalize(raw, dim=-1)

    def texts(self, texts):
        raw = torch.tensor([[float(v) for v in text.split()] for text in texts])
        return torch.nn.functional.normalize(raw, dim=-1)


def colour(*rgb):
    return Image.new("RGB", (4, 4), tuple(128 + v for v in rgb))


def row(before, after, **meta):
    return Transition(before, after, "do it", id="r", meta=meta)


X, Y, Z = colour(100, 0, 0), colour(0, 100, 0), colour(0, 0, 100)


def test_features_are_those_of_transformers(folder, encoder, tmp_path):
    images = [block_image(n, (16, 16)) for n in range(3)]
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
    assert encoder.images([block_image(0, (40, 8))]).norm() == pytest.approx(1, abs=1e-5)
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


def test_byte_morph_by_hand():
    metric = ByteMorphDirections(Vectors(), ["camera_zoom", "interaction"])
    texts = {"src_caption": "1 0 0", "tgt_caption": "0 1 0"}
    metric.update([Z], [row(X, Y, edit_type="camera_zoom", **texts)])
    found = {k: float(v) for k, v in metric.compute().items()}
    # directions: generated z - x, target y - x, text y - x; cos(z - x, y - x) = 1 / 2
    assert found["clip_sim_img"] == pytest.approx(0, abs=1e-6)
    assert found["clip_sim_txt"] == pytest.approx(0, abs=1e-6)
    assert found["clip_d_txt"] == pytest.approx(0.5)
    assert found["clip_d_img"] == pytest.approx(0.5)
    assert found["clip_d_img/camera_zoom"] == pytest.approx(0.5)  # a category of one
    assert not any(key.endswith("/interaction") for key in found)


def test_a_copy_scores_zero_and_never_nan():
    metric = ByteMorphDirections(Vectors())
    texts = {"src_caption": "1 0 0", "tgt_caption": "0 1 0"}
    metric.update([X, Y, None], [row(X, Y, **texts), row(X, X), row(X, Y, **texts)])
    found = {k: float(v) for k, v in metric.compute().items()}
    assert found["clip_d_img"] == 0  # copy; source = target; missing
    assert found["clip_d_txt"] == 0
    assert found["clip_sim_img"] == pytest.approx(1 / 3)
    assert found["clip_sim_txt"] == 0  # the row without captions is not counted
    assert not any(math.isnan(v) for v in found.values())
    assert cosine(torch.zeros(3), torch.ones(3)) == 0


def test_a_real_copy_is_zero_with_a_real_model(encoder):
    metric = ByteMorphDirections(encoder)
    metric.update([block_image(1)], [row(block_image(1), block_image(2), src_caption="a", tgt_caption="b")])
    found = metric.compute()
    assert found["clip_sim_img"] == pytest.approx(1, abs=1e-5)
    assert found["clip_d_img"] == 0
    assert found["clip_d_txt"] == 0


def disc(item, side, sample, before):
    return row(before, before, disc={"item": item, "side": side, "sample": sample})


def test_disc_edit_by_hand():
    def latents(images):
        return torch.tensor([[float(p.getpixel((0, 0))[0])] for p in images])

    metric = DiscEdit(latents, tasks=["clevr", "ag"], samples=2)
    assert metric.compute() == {}
    near, far = colour(10, 0, 0), colour(30, 0, 0)
    source = colour(0, 0, 0)
    sides = {"pos": [near, far, None, near], "neg": [far, near, far, near]}  # won, lost, missing, a tie
    for side, outputs in sides.items():
        rows = [disc(n // 2, side, n % 2, source) for n in range(4)]
        metric.update(outputs, rows)
    metric.update([near], [row(source, source)])  # no part of it
    found = metric.compute()
    assert float(found["disc_edit"]) == pytest.approx(1 / 4)
    assert float(found["disc_edit_standard_error"]) == pytest.approx((0.25 * 0.75 / 4) ** 0.5)


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
