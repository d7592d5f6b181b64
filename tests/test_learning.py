"""RL learns: the reward rises in both phases, and does not if rewards are shuffled within each group.

The warm-up's labels are wrong in a third of the rows, so each model ends it with a low probability of the right answer.
The other model still prefers that answer, so a policy that follows its reward learns it.
"""

from __future__ import annotations

import pytest
import torch

from support.tiny import gemma_folder, text_backbone
from support.trainers import quiet_trainer
from swirl_lightning import SWIRL, GRPOConfig, OptimConfig, PhaseOptimConfig, SamplingConfig, Transition
from swirl_lightning.callbacks import PhaseSwitch
from swirl_lightning.data import TransitionDataModule
from swirl_lightning.evaluation import EvaluationConfig
from swirl_lightning.prompts import PromptTemplates
from swirl_lightning.training.rewards import MeanLogProb, ShuffledWithinGroup

ROOMS = 4
REWARDS = {"fwm": "val/identifiability", "idm": "val/likelihood"}  # means of log Q(z | x, ŷ) and log P(y | x, ẑ)
MARGIN = 0.15  # nats per token


class Rooms(TransitionDataModule):
    """x = "b", z = "3" (go to the room of that number), y = "d"."""

    def load_split(self, split):
        rows = []
        for n in range(6 if split in ("warmup", "state_only") else 3):
            for x in range(ROOMS):
                for z in range(ROOMS):
                    y = (z + 1 + n // 3) % ROOMS if split == "warmup" and n % 3 == 2 else z
                    rows.append(Transition("abcd"[x], "abcd"[y], str(z), id=f"{split}-{x}{z}-{n}"))
        return rows


def model(folder, reward=None):
    torch.manual_seed(0)
    return SWIRL(
        text_backbone(folder, quantization=None, max_state_tokens=2, max_action_tokens=2),
        templates=PromptTemplates(fwm="{before}{action}", idm="{before}{after}"),
        grpo=GRPOConfig(group_size=8, beta=0),
        optim=PhaseOptimConfig(warmup=OptimConfig(5e-3), fwm=OptimConfig(3e-3), idm=OptimConfig(3e-3)),
        sampling=SamplingConfig(1.0, 1.0),
        reward=reward,
        evaluation=EvaluationConfig(modes=("sampled",)),
    )


def measured(module, tmp_path):
    """Both mean rewards on fixed pairs."""
    run = quiet_trainer(tmp_path)
    run.validate(module, Rooms(), verbose=False)
    return {phase: float(run.callback_metrics[name]) for phase, name in REWARDS.items()}


@pytest.fixture(scope="module")
def warm(tmp_path_factory):
    """A base, the adapters after the warm-up, and their mean rewards."""
    tmp_path = tmp_path_factory.mktemp("warm")
    folder = gemma_folder(tmp_path / "base", layers=2)
    module = model(folder)
    quiet_trainer(tmp_path, PhaseSwitch(5, iterations=0), limit_val_batches=0).fit(module, Rooms())
    adapters = {key: value.clone() for key, value in module.adapters.state_dict().items()}
    return folder, adapters, measured(module, tmp_path)


@pytest.mark.parametrize("phase", ["fwm", "idm"])
def test_the_reward_rises_and_shuffled_rewards_raise_nothing(warm, tmp_path, phase):
    folder, adapters, before = warm
    after = {}
    for reward in (MeanLogProb(), ShuffledWithinGroup()):
        module = model(folder, reward)
        module.configure_model()
        module.load_state_dict(adapters)
        run = quiet_trainer(tmp_path, PhaseSwitch(0, [phase], iterations=1), limit_val_batches=0)
        run.fit(module, Rooms(batch_size=4))
        assert run.global_step == 24
        after[type(reward)] = measured(module, tmp_path)[phase]
    assert after[MeanLogProb] > before[phase] + MARGIN
    assert after[ShuffledWithinGroup] < before[phase]
