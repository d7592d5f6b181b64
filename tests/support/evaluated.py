"""Predictions of an evaluation, as its listener gets them."""

from __future__ import annotations

import torch

from support.tiny import text_backbone
from support.world import Digits
from swirl_lightning import SWIRL, SamplingConfig
from swirl_lightning.evaluation import EvaluationConfig

CPU = torch.device("cpu")


def evaluated(gemma_path, best_of):
    """A module, three transitions, and the state that it predicts for each."""
    module = SWIRL(
        text_backbone(gemma_path, quantization=None),
        sampling=SamplingConfig(1.0, 1.0),
        evaluation=EvaluationConfig(modes=("sampled",), best_of=best_of, seed=4),
    )
    module.configure_model()
    generator = torch.Generator().manual_seed(2)
    for name in module.adapters.names:
        for parameter in module.adapters.parameters(name):
            parameter.data.normal_(0, 0.1, generator=generator)
    data = Digits(size=3)
    rows, shown = data.split("test"), []
    module.evaluator.listeners.append(lambda mode, rows, states, words: shown.extend(states))
    module.evaluator.start(data, CPU)
    module.evaluator.step(rows, CPU)
    return module, rows, shown
