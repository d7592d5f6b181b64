"""Noise in the states that the IDM reads."""

from __future__ import annotations

from support.swirl import build, trainer
from support.world import Digits
from swirl_lightning.callbacks import PhaseSwitch
from swirl_lightning.engine.grammar import Grammar

EOS = 1


def test_noise_ends_no_state(gemma_path, tmp_path):
    """Tokens of y are replaced by any that a state may hold, which its EOS is not."""
    module = build(gemma_path, idm_state_noise=0.99, quantization=None)
    module.configure_model()
    digits = module.backbone.encode_text("0123456789")
    module.models.grammars["fwm"] = Grammar(tuple(sorted([EOS, *digits])), 4, EOS)
    score, prompts = module.models.score, []

    def watch(role, adapter, asked, completions, **kwargs):
        prompts.extend(asked if role == "idm" else [])
        return score(role, adapter, asked, completions, **kwargs)

    module.models.score = watch
    data = Digits(size=64, batch_size=64)
    trainer(tmp_path, PhaseSwitch(1, iterations=0)).fit(module, data)
    encode = module.backbone.encode_text
    clean = {tuple(module.models.prompts.idm(encode(row.before), encode(row.after))) for row in data.split("warmup")}
    assert len(prompts) == 64
    assert sum(tuple(prompt) in clean for prompt in prompts) < 48
    assert not any(EOS in prompt for prompt in prompts)
