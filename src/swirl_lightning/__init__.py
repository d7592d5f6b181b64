"""Self-improving world models from state-only data: SWIRL (arXiv 2602.06130) on PyTorch Lightning.

Each name is imported at first use. So ``import swirl_lightning`` is fast and changes nothing in the process.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from swirl_lightning.lazy_names import lazy_names

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

__getattr__, __dir__ = lazy_names(__name__, {name: f"swirl_lightning.{home}" for name, home in _HOMES.items()})
