"""Meaning of each curve, beside the curves."""

from __future__ import annotations

from importlib.resources import files

from lightning.pytorch import Callback, LightningModule, Trainer

from swirl_lightning.callbacks.media import media


class MetricGlossary(Callback):
    """Writes the page that explains each metric to the run's loggers when training starts.

    Example::

        >>> from swirl_lightning.callbacks import MetricGlossary
        >>> callback = MetricGlossary()
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write it once."""
        page = files("swirl_lightning").joinpath("assets", "metrics.md").read_text(encoding="utf-8")
        media(trainer).text("metrics", page, trainer.global_step)
