"""DiscEdit against values computed by hand."""

from __future__ import annotations

import pytest
import torch

from support.image_features import colour, row
from swirl_lightning.benchmarks.aurora.disc_edit import DiscEdit


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
