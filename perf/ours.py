"""Phase I and Phase II of SWIRL under a real Trainer, one batch an epoch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

from lightning.pytorch import Callback, Trainer

from perf.common import Case, Pairs, build_module
from perf.meter import Meter
from swirl_lightning.callbacks import PhaseSwitch
from swirl_lightning.world_models import WorldModel


class _Step(Callback):
    """Meter of a step, from one batch to the next: rollouts, rewards, update and optimiser."""

    def __init__(self, meter: Meter) -> None:
        self.meter = meter

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
        self.meter.start(pl_module.phase.name)

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
        self.meter.stop()


def run(case: Case, folder: Path, device: str, rounds: int, profiled: bool) -> tuple[Meter, dict[str, float]]:
    """Run Phase I and Phase II ``rounds`` times."""
    module = build_module(case, folder).to(device)
    meter = Meter(device, profiled)

    def sampling(model: WorldModel) -> str:
        return "sample" if model.role == module.phase.name else "latent action"

    def scoring(model: WorldModel) -> str | None:
        if model.role != module.phase.name:
            return "reward"
        return "reference" if model.adapter == module.adapters.reference(model.role) else None

    sample, score = WorldModel.sample_ids, WorldModel.score_ids
    with (
        patch.object(WorldModel, "sample_ids", _timed(sample, sampling, meter)),
        patch.object(WorldModel, "score_ids", _timed(score, scoring, meter)),
    ):
        Trainer(
            accelerator="gpu" if device == "cuda" else "cpu",
            devices=1,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
            limit_val_batches=0,
            callbacks=[PhaseSwitch(0, iterations=rounds), _Step(meter)],
        ).fit(module, Pairs(case))
    return meter, {}


def _timed(call: Callable[..., Any], part: Callable[[WorldModel], str | None], meter: Meter) -> Callable[..., Any]:
    """Wrap ``call`` so that its time counts under ``part(model)``; None counts it under the policy update."""

    def timed(model: WorldModel, *args: Any, **kwargs: Any) -> Any:
        name = part(model)
        if name is None:
            return call(model, *args, **kwargs)
        with meter.part(name):
            return call(model, *args, **kwargs)

    return timed
