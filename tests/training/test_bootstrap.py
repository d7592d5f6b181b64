"""The baselines Bootstrap (SFT-Continue) and SFT-Merge: whose labels are trained on, and how many of each."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from support.swirl import CONSTANT, SGD, build, randomize, trainer
from support.world import Digits
from swirl_lightning import module as home
from swirl_lightning.callbacks import PhaseSwitch
from swirl_lightning.engine.drawing import GREEDY
from swirl_lightning.roles import Role
from swirl_lightning.schedule import PhaseSchedule
from swirl_lightning.training.trainer_checks import check_labels_once


def trained(monkeypatch, module, data, folder, iterations=2):
    """Fit ``bootstrap`` alone; return (before, after, action) of every row, epoch by epoch."""
    score, seen = home.sft_log_probs, []

    def watched(models, before, actions, after, roles, after_seen=None):
        assert roles == (Role.FWM,)
        rows = [
            tuple(module.backbone.decode_action(torch.as_tensor(ids)) for ids in row)
            for row in zip(before, after, actions, strict=True)
        ]
        seen.append((module.current_epoch, rows))
        return score(models, before, actions, after, roles, after_seen)

    monkeypatch.setattr(home, "sft_log_probs", watched)
    trainer(folder, PhaseSwitch(0, ["bootstrap"], iterations=iterations)).fit(module, data)
    return [[row for epoch, rows in seen if epoch == number for row in rows] for number in range(iterations)]


@pytest.mark.parametrize("labels", ["once", "online"])
def test_labels_are_the_idms_likeliest_or_drawn_in_each_epoch(gemma_path, tmp_path, monkeypatch, labels):
    module = build(gemma_path, bootstrap_labels=labels, quantization=None)
    randomize(module)
    data = Digits(size=16, batch_size=4)
    first, second = ({row[:2]: row[2] for row in rows} for rows in trained(monkeypatch, module, data, tmp_path))
    assert first.keys() == second.keys()
    assert (first == second) == (labels == "once")
    greedy = {pair: module.predict_action(*pair, greedy=True)[0] for pair in first}
    assert (greedy == first) == (labels == "once")


@pytest.mark.parametrize(
    ("phases", "iterations", "shared", "refused"),
    [
        (["bootstrap"], 3, False, False),
        (["fwm", "bootstrap"], None, False, False),
        (["bootstrap", "idm"], 1, False, True),
        (["bootstrap"], 1, True, False),
        (["bootstrap"], 2, True, True),
        (["fwm", "bootstrap"], 1, True, True),
        (["fwm", "idm"], 2, True, False),
    ],
)
def test_labels_of_an_idm_that_changes_are_not_given_once(gemma_path, tmp_path, phases, iterations, shared, refused):
    schedule = PhaseSchedule(0, tuple(phases), iterations)
    if not refused:
        check_labels_once("once", schedule, shared)
        return
    with pytest.raises(ValueError, match="once needs an IDM that stands still"):
        check_labels_once("once", schedule, shared)
    module = build(gemma_path, bootstrap_labels="once", shared_weights=shared)
    with pytest.raises(ValueError, match="once needs an IDM that stands still"):
        trainer(tmp_path, PhaseSwitch(0, phases, iterations)).fit(module, Digits(size=8, batch_size=4))
    assert module.model is None  # no weights were loaded


def test_there_are_two_ways_to_label(gemma_path):
    with pytest.raises(ValueError, match="must be 'online' or 'once', got 'never'"):
        build(gemma_path, bootstrap_labels="never")


class Few(Digits):
    """Three labelled triples."""

    def load_split(self, split):
        return super().load_split(split)[: 3 if split == "warmup" else None]


def test_a_share_of_labelled_triples_is_mixed_in(gemma_path, tmp_path, monkeypatch):
    """12 pairs and a quarter: 4 labelled triples, the first of which comes again."""
    module = build(gemma_path, bootstrap_labels="once", quantization=None)
    randomize(module)
    data = Few(size=12, batch_size=1, labelled_share=0.25)
    pairs, triples = ({(r.before, r.after) for r in data.load_split(name)} for name in ("state_only", "warmup"))
    labels = {(r.before, r.after): r.action for r in data.load_split("warmup")}
    for rows in trained(monkeypatch, module, data, tmp_path):
        counts = Counter(row[:2] for row in rows)
        assert len(rows) == 16
        assert set(counts) == pairs | triples
        assert sorted(counts[pair] - (pair in pairs) for pair in triples) == [1, 1, 2]
        assert all(sum(row == (*pair, action) for row in rows) >= 1 for pair, action in labels.items())
    others = [[data.merged(n)[12 + k].id for k in range(4)] for n in range(3)]
    assert others[0] != others[1] or others[1] != others[2]
    assert len(Few(size=12, labelled_share=0).merged(0)) == 12
    with pytest.raises(ValueError, match=r"labelled_share must lie in \[0, 0\.99\]"):
        Few(labelled_share=1)


@pytest.mark.parametrize("batch_size", [16, 2])
def test_its_step_is_that_of_supervised_training_on_all_of_them(gemma_path, tmp_path, batch_size):
    module = build(gemma_path, bootstrap_labels="once", quantization=None, optimizer=SGD, optim=CONSTANT)
    randomize(module)
    data = Digits(size=12, batch_size=batch_size, labelled_share=0.25)
    rows = [data.merged(0)[n] for n in range(16)]
    x, y = (module.states.encode([getattr(row, end) for row in rows], module.device) for end in ("before", "after"))
    named = module.models.idm.sample(x, y, [row.id for row in rows], GREEDY).contents
    assert [row.action is None for row in rows] == [True] * 12 + [False] * 4
    z = [*named[:12], *(module.backbone.encode_action(row.action) for row in rows[12:])]
    (-module.models.fwm.log_prob(y, x, z, training=True).mean_per_token().mean()).backward()
    parameters = list(module.adapters.parameters("fwm"))
    wanted = [p.detach() - 0.02 * p.grad for p in parameters]
    module.zero_grad()
    run = trainer(tmp_path, PhaseSwitch(0, ["bootstrap"], 1), accumulate_grad_batches=16 // batch_size)
    run.fit(module, data)
    assert run.global_step == 1
    for got, expected in zip(module.adapters.parameters("fwm"), wanted, strict=True):
        torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-4)
