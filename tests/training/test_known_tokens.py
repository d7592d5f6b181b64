"""States with tokens that no state has are not rewarded."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from support.swirl import build, trainer
from support.world import Digits
from swirl_lightning import GRPOConfig
from swirl_lightning.callbacks import PhaseSwitch
from swirl_lightning.training.known_tokens import IMPOSSIBLE, KnownTokens
from swirl_lightning.training.learners import BestOfN

FLOOR = -10.0


class FewDigits(Digits):
    """Labels whose states have some digits alone; pairs with others."""

    def load_split(self, split):
        rows = super().load_split(split)
        few = {"warmup": "0123", "state_only": "6789"}.get(split)
        if few is None:
            return rows
        return [replace(row, before=few[n % 4] + few[n // 4 % 4], after=few[n % 4] * 2) for n, row in enumerate(rows)]


def fit(gemma_path, folder, known_tokens, data=None):
    grpo = GRPOConfig(group_size=4, beta=0)
    module = build(gemma_path, known_tokens=known_tokens, learner=BestOfN(FLOOR / 2), grpo=grpo)
    rollouts = []

    class Keep(PhaseSwitch):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            rollouts.append(outputs["rollouts"])

    switch = Keep(warmup_epochs=0, phases=("fwm",), iterations=1)
    trainer(folder, switch).fit(module, data or FewDigits(size=16, batch_size=4))
    return module, rollouts


def test_a_state_with_a_token_that_neither_labels_nor_its_pair_have_earns_the_floor(gemma_path, tmp_path):
    module, rollouts = fit(gemma_path, tmp_path, True)
    labels = FewDigits(size=16).split("warmup")
    known = {token for row in labels for text in (row.before, row.after) for token in module.backbone.encode_text(text)}
    strange = 0
    for rolled in rollouts:
        for n, (content, reward) in enumerate(zip(rolled.contents, rolled.rewards.tolist(), strict=True)):
            pair = rolled.transitions[n // rolled.group_size]
            own = {token for text in (pair.before, pair.after) for token in module.backbone.encode_text(text)}
            assert (reward == FLOOR) == (not set(content) <= known | own)
            strange += reward == FLOOR
    assert strange > 0


def test_all_states_are_rewarded_where_that_is_not_asked(gemma_path, tmp_path):
    _, rollouts = fit(gemma_path, tmp_path, False)
    assert all((rolled.rewards > FLOOR).all() for rolled in rollouts)


def test_the_tokens_of_one_pair_are_not_those_of_another(gemma_path):
    module = build(gemma_path)
    module.configure_model()
    known = KnownTokens(module, True)
    known._ids = frozenset([1])
    z = [module.backbone.encode_action("up")] * 2
    samples = module.models.fwm.sample([[5], [6]], z, ["a", "b"], module.sampling, group=2)
    samples = replace(samples, contents=[[1, 5], [5, 6], [6, 1], [7]])
    judged = module.models.idm.log_prob(z, [[5], [6]], samples)
    got = known.judge(judged, [[5], [6]], [[5], [7]], samples)
    assert torch.equal(got.values[[0, 2, 3]], judged.values[[0, 2, 3]])
    assert (got.values[1][judged.mask[1]] == IMPOSSIBLE).all()
    assert (got.values[~judged.mask] == 0).all()
    assert KnownTokens(module, False).judge(judged, [], [], samples) is judged


def test_the_labelled_split_is_needed_before_the_base_loads(gemma_path, tmp_path):
    class Unlabelled(FewDigits):
        def load_split(self, split):
            return [] if split == "warmup" else super().load_split(split)

    fit(gemma_path, tmp_path, False, Unlabelled(size=16, batch_size=4))
    with pytest.raises(ValueError, match="the split 'warmup' is empty"):
        fit(gemma_path, tmp_path, True, Unlabelled(size=16, batch_size=4))
