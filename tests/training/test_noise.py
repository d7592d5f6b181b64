"""What is drawn at random in training: noise in the states that the IDM reads, and rollouts."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from lightning import Callback, seed_everything

from support.swirl import build, randomize, trainer
from support.tiny import text_backbone
from support.world import Digits
from swirl_lightning import SWIRL, GRPOConfig
from swirl_lightning import module as module_file
from swirl_lightning.callbacks import PhaseSwitch
from swirl_lightning.engine.grammar import Grammar
from swirl_lightning.training.trainer_checks import check_state_noise
from swirl_lightning.world_models import WorldModel

EOS = 1


def test_noise_ends_no_state(gemma_path, tmp_path, monkeypatch):
    """Tokens of y are replaced by any that a state may hold, which its EOS is not."""
    module = build(gemma_path, idm_state_noise=0.99, quantization=None)
    module.configure_model()
    digits = module.backbone.encode_text("0123456789")
    module.backbone.state_grammar = Grammar(tuple(sorted([EOS, *digits])), 4, EOS)
    score_ids, prompts = WorldModel.score_ids, []

    def watch(self, asked, completions, **kwargs):
        prompts.extend(asked if self.role == "idm" else [])
        return score_ids(self, asked, completions, **kwargs)

    monkeypatch.setattr(WorldModel, "score_ids", watch)
    data = Digits(size=64, batch_size=64)
    trainer(tmp_path, PhaseSwitch(1, iterations=0)).fit(module, data)
    encode = module.backbone.encode_text
    clean = {tuple(module.models.prompts.idm(encode(row.before), encode(row.after))) for row in data.split("warmup")}
    assert len(prompts) == 64
    assert sum(tuple(prompt) in clean for prompt in prompts) < 48
    assert not any(EOS in prompt for prompt in prompts)


def test_noise_differs_each_time_that_a_label_comes(gemma_path, tmp_path, monkeypatch):
    class Few(Digits):
        def load_split(self, split):
            return super().load_split(split)[: 2 if split == "warmup" else None]

    read, log_probs = [], module_file.sft_log_probs

    def watch(models, x, actions, y, roles, seen):
        read.append(tuple(map(tuple, seen)))
        return log_probs(models, x, actions, y, roles, seen)

    monkeypatch.setattr(module_file, "sft_log_probs", watch)
    module = build(gemma_path, idm_state_noise=0.99, quantization=None)
    trainer(tmp_path, PhaseSwitch(0, ["idm"], 1)).fit(module, Few(size=32, batch_size=4, labelled_per_batch=2))
    assert len(read) == 8
    assert len({frozenset(both) for both in read}) > 4


def test_noise_needs_tokens_that_hold_the_state():
    check_state_noise(0.0, SimpleNamespace(ids_suffice=False))
    with pytest.raises(ValueError, match="those of SimpleNamespace only hold an image's place"):
        check_state_noise(0.1, SimpleNamespace(ids_suffice=False))


class Rollouts(Callback):
    def __init__(self):
        self.contents = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.contents += outputs["rollouts"].contents


@pytest.mark.parametrize("given", [None, 5])
def test_seed_everything_sets_the_rollouts_unless_there_is_a_seed(gemma_path, tmp_path, given):
    drawn = []
    for seed in (1, 2):
        seed_everything(seed, verbose=False)
        backbone = text_backbone(gemma_path, max_state_tokens=4, max_action_tokens=5, quantization=None)
        module, rollouts = SWIRL(backbone, grpo=GRPOConfig(group_size=4), seed=given), Rollouts()
        randomize(module)
        trainer(tmp_path, PhaseSwitch(0, ["fwm"], 1), [rollouts]).fit(module, Digits(size=4, batch_size=4, seed=0))
        drawn.append(rollouts.contents)
    assert (drawn[0] == drawn[1]) == (given is not None)
