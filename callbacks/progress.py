"""Progress bar that names the phase."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar

from swirl_lightning.schedule import WARMUP, Phase


class PhaseProgressBar(TQDMProgressBar):
    """Lightning's progress bar with the name of the phase before it, and the metrics of that phase alone after it.

    Example:
        >>> from swirl_lightning.callbacks import PhaseProgressBar
        >>> bar = PhaseProgressBar(refresh_rate=1)
    """

    def on_train_epoch_start(self, trainer: Trainer, *args: Any) -> None:
        """Name the phase."""
        super().on_train_epoch_start(trainer, *args)
        phase: Phase = trainer.lightning_module.phase  # type: ignore[assignment]
        name = "warm-up" if phase.name == WARMUP else f"iteration {phase.iteration + 1} · {phase.name}"
        self.train_progress_bar.set_description(f"epoch {trainer.current_epoch} · {name}")

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """Return the metrics of the current phase by short names, without the version number."""
        metrics = super().get_metrics(trainer, pl_module)
        if not trainer.training:
            return {}
        prefix = f"{pl_module.phase.name}/"  # type: ignore[union-attr]
        return {k.removeprefix(prefix): v for k, v in metrics.items() if k.startswith(prefix)}
