"""SWIRL on the small Gemma: the module, its trainer and what is compared of it."""

from __future__ import annotations

import torch

from support.tiny import text_backbone
from support.trainers import quiet_trainer
from swirl_lightning import SWIRL, GRPOConfig, OptimConfig, PhaseOptimConfig, SamplingConfig
from swirl_lightning.callbacks import PhaseSwitch

OPTIM = PhaseOptimConfig(OptimConfig(3e-3), OptimConfig(1e-3), OptimConfig(1e-3))


# Adam turns rounding errors of vanishing gradients into whole steps; SGD keeps them small
CONSTANT = PhaseOptimConfig(*[OptimConfig(0.02, warmup=0, schedule="constant")] * 3)


def SGD(params):
    return torch.optim.SGD(params)


def build(path, seed=0, **kwargs):
    torch.manual_seed(seed)
    settings = {
        "grpo": GRPOConfig(group_size=4),
        "optim": OPTIM,
        "sampling": SamplingConfig(1.0, 1.0),
        "anchor_weight": 0.0,
    }
    bits = {k: kwargs.pop(k) for k in ("quantization", "gradient_checkpointing") if k in kwargs}
    return SWIRL(text_backbone(path, max_state_tokens=4, max_action_tokens=5, **bits), **(settings | kwargs))


def trainer(folder, switch=None, callbacks=(), **settings):
    """Warm-up, Phase I and Phase II, an epoch each, without validation."""
    switch = switch or PhaseSwitch(warmup_epochs=1, iterations=1)
    return quiet_trainer(folder, switch, *callbacks, **({"limit_val_batches": 0} | settings))


def snapshot(module):
    return {k: v.clone() for k, v in module.adapters.state_dict().items()}


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def randomize(module, seed=5):
    """Adapters that differ from the base and from one another."""
    module.configure_model()
    generator = torch.Generator().manual_seed(seed)
    for name in module.adapters.trainable:
        for parameter in module.adapters.parameters(name):
            parameter.data.normal_(0, 0.1, generator=generator)
