"""ByteMorph's directions against values computed by hand."""

from __future__ import annotations

import math

import pytest
import torch

from support.image_features import Vectors, X, Y, Z, row
from support.image_world import block_image, clip_folder
from swirl_lightning.benchmarks.bytemorph.metrics import ByteMorphDirections, cosine
from swirl_lightning.metrics.clip import CLIPEncoder


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


def test_a_real_copy_is_zero_with_a_real_model(tmp_path):
    metric = ByteMorphDirections(CLIPEncoder(str(clip_folder(tmp_path)), device="cpu"))
    metric.update([block_image(1)], [row(block_image(1), block_image(2), src_caption="a", tgt_caption="b")])
    found = metric.compute()
    assert found["clip_sim_img"] == pytest.approx(1, abs=1e-5)
    assert found["clip_d_img"] == 0
    assert found["clip_d_txt"] == 0
