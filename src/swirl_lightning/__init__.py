"""Self-improving world models from state-only data: SWIRL (arXiv 2602.06130) on PyTorch Lightning."""

from swirl_lightning import host_memory as host_memory  # before anything makes a tensor

# isort: split
from swirl_lightning.adapters import LoraSettings
from swirl_lightning.evaluation import EvaluationConfig
from swirl_lightning.grpo import GRPOConfig
from swirl_lightning.module import SWIRL
from swirl_lightning.prompts import PromptTemplates
from swirl_lightning.sampling import SamplingConfig
from swirl_lightning.schedule import OptimConfig, PhaseOptimConfigs
from swirl_lightning.transition import State, Transition

__all__ = [
    "SWIRL",
    "EvaluationConfig",
    "GRPOConfig",
    "LoraSettings",
    "OptimConfig",
    "PhaseOptimConfigs",
    "PromptTemplates",
    "SamplingConfig",
    "State",
    "Transition",
]
