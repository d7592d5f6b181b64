"""Self-improving world models from state-only data: SWIRL (arXiv 2602.06130) on PyTorch Lightning.

Each name is imported at first use. So ``import swirl_lightning`` is fast and changes nothing in the process.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from swirl_lightning.adapters import AdapterConfig
    from swirl_lightning.backbones.base import Backbone
    from swirl_lightning.callbacks.phase_switch import PhaseSwitch
    from swirl_lightning.data.module import TransitionDataModule
    from swirl_lightning.engine.drawing import SamplingConfig
    from swirl_lightning.evaluation import EvaluationConfig
    from swirl_lightning.module import SWIRL
    from swirl_lightning.prompts import PromptTemplates
    from swirl_lightning.schedule import OptimConfig, PhaseOptimConfig
    from swirl_lightning.training.grpo import GRPOConfig
    from swirl_lightning.training.rewards import Reward
    from swirl_lightning.transition import State, Transition

_HOMES = {
    "SWIRL": "module",
    "Backbone": "backbones.base",
    "EvaluationConfig": "evaluation",
    "GRPOConfig": "training.grpo",
    "AdapterConfig": "adapters",
    "OptimConfig": "schedule",
    "PhaseOptimConfig": "schedule",
    "PhaseSwitch": "callbacks.phase_switch",
    "PromptTemplates": "prompts",
    "Reward": "training.rewards",
    "SamplingConfig": "engine.drawing",
    "State": "transition",
    "Transition": "transition",
    "TransitionDataModule": "data.module",
}

__all__ = [
    "SWIRL",
    "AdapterConfig",
    "Backbone",
    "EvaluationConfig",
    "GRPOConfig",
    "OptimConfig",
    "PhaseOptimConfig",
    "PhaseSwitch",
    "PromptTemplates",
    "Reward",
    "SamplingConfig",
    "State",
    "Transition",
    "TransitionDataModule",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; there are: {sorted(_HOMES)}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
