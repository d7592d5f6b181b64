"""Running a text suite end to end with the tiny Gemma."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from tiny import text_backbone

from swirl_lightning import SWIRL, SamplingConfig
from swirl_lightning.callbacks import PhaseSwitch
from swirl_lightning.evaluation import EvaluationConfig

SAMPLES = Path(__file__).parents[1] / "../shared/samples"


def tiny_model(gemma: Path, **kwargs: Any) -> SWIRL:
    return SWIRL(
        text_backbone(gemma, max_state_tokens=40, max_action_tokens=10, quantization=None),
        sampling=SamplingConfig(temperature=0.7, top_p=0.96),
        evaluation=EvaluationConfig(modes=("sampled",)),
        **kwargs,
    )


def tiny_trainer(folder: Path, **kwargs: Any) -> Trainer:
    return Trainer(
        accelerator="cpu",
        default_root_dir=folder,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[PhaseSwitch(warmup_epochs=1, iterations=1)],
        **kwargs,
    )


def evaluated(data: Any, gemma: Path, folder: Path) -> dict[str, float]:
    """What ``swirl test`` reports."""
    (results,) = tiny_trainer(folder).test(tiny_model(gemma), datamodule=data, verbose=False)
    return {key.removeprefix("test/"): float(value) for key, value in results.items()}
