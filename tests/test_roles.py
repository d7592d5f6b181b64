"""Training and evaluation of one of the two models (``roles``)."""

from __future__ import annotations

import pytest

from support.tiny import text_backbone
from support.trainers import quiet_trainer
from support.world import Digits
from swirl_lightning import SWIRL
from swirl_lightning.callbacks import PhaseSwitch
from swirl_lightning.evaluation import EvaluationConfig


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"roles": ("judge",)}, "roles must be among"),
        ({"roles": ("fwm",), "evaluation": EvaluationConfig(best_of=2)}, "asks both models"),
    ],
)
def test_roles_that_do_not_fit_are_refused(settings, said, gemma_path):
    with pytest.raises(ValueError, match=said):
        SWIRL(text_backbone(gemma_path), **settings)


def test_one_role_takes_no_part_in_rl(gemma_path, tmp_path):
    trainer = quiet_trainer(tmp_path, PhaseSwitch(1))
    with pytest.raises(ValueError, match="RL needs both"):
        trainer.fit(SWIRL(text_backbone(gemma_path), roles=("idm",)), Digits())
