"""The ``swirl`` command: LightningCLI with fit, validate, test and predict."""

from __future__ import annotations

import os
import sys
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import (
    BasePredictionWriter,
    Checkpoint,
    LearningRateMonitor,
    ModelCheckpoint,
    ProgressBar,
)
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.trainer.states import TrainerFn

from swirl_lightning.callbacks import (
    ActionTable,
    AdapterExport,
    CollapseWatch,
    HyperparameterText,
    MemoryReport,
    PhaseProgressBar,
    PhaseSwitch,
    Predictions,
    Results,
    Throughput,
    TransitionImages,
)
from swirl_lightning.checkpoint import check_file
from swirl_lightning.data import TransitionDataModule
from swirl_lightning.module import SWIRL
from swirl_lightning.prepare.smollm2 import main as fetch
from swirl_lightning.results.report import main as report

TRAINER = {
    "max_epochs": -1,  # the schedule of phases ends the training
    "gradient_clip_val": 1.0,
    "log_every_n_steps": 1,
    "num_sanity_val_steps": 0,
}
"""Defaults of the Trainer's own options, which a config overrides as usual."""


def default_callbacks(config: dict[str, Any], given: list[Callback]) -> list[Callback]:
    """The callbacks of every run, without those whose class is among the ``given`` ones.

    Args:
        config: the Trainer's arguments; what they switch off is left out.
        given: the config's own callbacks.
    """
    found: dict[type, Callback] = {
        kind: kind()
        for kind in (
            MemoryReport,
            Results,
            TransitionImages,
            ActionTable,
            CollapseWatch,
            AdapterExport,
            Throughput,
            HyperparameterText,
        )
    }
    if config.get("logger") is not False:
        found[LearningRateMonitor] = LearningRateMonitor(logging_interval="step")
    if config.get("enable_progress_bar") is not False:
        found[ProgressBar] = PhaseProgressBar()
    # with save_last, Lightning would write even in a fast_dev_run, over the last.ckpt of a real run
    if config.get("enable_checkpointing") is not False and not config.get("fast_dev_run"):
        # all runs of a config share a folder, and last.ckpt is to be the last run's
        found[Checkpoint] = ModelCheckpoint(
            filename="{epoch}", save_top_k=-1, save_last=True, enable_version_counter=False
        )
    return [callback for kind, callback in found.items() if not any(isinstance(own, kind) for own in given)]


class SaveConfig(SaveConfigCallback):
    """Writes ``config.yaml`` for fit and ``config_<command>.yaml`` for the others, over an older one."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """As in Lightning, with the file named by the command."""
        if stage != "fit":
            self.config_filename = f"config_{TrainerFn(stage).value}.yaml"
        super().setup(trainer, pl_module, stage)


class Parser(LightningArgumentParser):
    """Lightning's parser, with ``null`` for options of classes within classes.

    jsonargparse reads the null of ``--model.backbone.quantization null`` and hands it on to the parser of the inner
    class as the text ``None``.
    """

    def parse_args(self, args: Any = None, *rest: Any, **options: Any) -> Any:
        """As in jsonargparse."""
        if isinstance(args, list) and len(args) == 1 and args[0].endswith("=None"):
            args = [args[0].removesuffix("None") + "null"]
        return super().parse_args(args, *rest, **options)


class SwirlCLI(LightningCLI):
    """LightningCLI with the phases as a top-level key: ``phase_switch: {warmup_epochs: 2, iterations: 1}``.

    ``trainer.default_root_dir`` is the run's folder: TensorBoard's logs, checkpoints, results and predictions go there,
    unless ``trainer.logger`` says otherwise. A run has `default_callbacks`; those of ``trainer.callbacks`` are added to
    them, or take the place of one of the same class.
    """

    def add_arguments_to_parser(self, parser: Any) -> None:
        """Every run has a PhaseSwitch."""
        parser.add_lightning_class_args(PhaseSwitch, "phase_switch")

    def _instantiate_trainer(self, config: Any, callbacks: list[Callback]) -> Trainer:
        """With the default logger and callbacks."""
        folder = config.get("default_root_dir")
        if config.get("logger") is None and folder is not None:
            config["logger"] = TensorBoardLogger(folder, name="", version="", default_hp_metric=False)
        own = config.get("callbacks") or []
        own = own if isinstance(own, list) else [own]
        return super()._instantiate_trainer(config, [*callbacks, *default_callbacks(config, own)])

    def before_predict(self) -> None:
        """Predictions go to files: as :class:`Predictions` writes them, unless the config has a writer of its own."""
        if not any(isinstance(c, (Predictions, BasePredictionWriter)) for c in self.trainer.callbacks):  # type: ignore[attr-defined]
            self.trainer.callbacks.append(Predictions())  # type: ignore[attr-defined]
        self.config.predict.return_predictions = False  # nobody reads them, and pictures would fill the memory

    def _parse_ckpt_path(self) -> None:
        """Refuse a missing or broken checkpoint before a model is loaded, and take no setting from any.

        Lightning's own method, not called here, puts a checkpoint's ``hyper_parameters`` over the user's
        configuration: class paths and ``trust_remote_code`` included, so that a file of weights runs code.
        """
        path = self.config.get(self.config.get("subcommand"), {}).get("ckpt_path")
        if path and path not in ("last", "best", "hpc", "registry"):
            check_file(path)


def swirl_cli(args: list[str] | None = None, run: bool = True) -> SwirlCLI:
    """The parser of the ``swirl`` command, and what it builds from ``args`` (None: the command line's).

    Args:
        args: with ``run``, the subcommand comes first.
        run: run the subcommand; False only builds trainer, model and data.
    """
    return SwirlCLI(
        SWIRL,
        TransitionDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        save_config_callback=SaveConfig,
        save_config_kwargs={"overwrite": True},
        parser_class=Parser,
        auto_configure_optimizers=False,
        seed_everything_default=0,
        trainer_defaults=TRAINER,
        parser_kwargs={
            "description": "World models from state-only data: SWIRL on PyTorch Lightning.",
            "epilog": "swirl report RUN ... puts results of runs beside the paper's, as Markdown and HTML; "
            "swirl fetch smollm2 --to FOLDER brings a small pretrained base.",
        },
        run=run,
        args=args,
    )


def main(args: list[str] | None = None) -> None:
    """Entry point of the console script.

    What a user can mend ends in one line on stderr; ``SWIRL_TRACEBACK=1`` shows where it came from.
    """
    given = sys.argv[1:] if args is None else args
    try:
        if given[:1] == ["report"]:
            report(given[1:])
            return
        if given[:1] == ["fetch"]:
            fetch(given[1:])
            return
        swirl_cli(args)
    except (ValueError, OSError, ImportError, FloatingPointError) as error:
        if os.environ.get("SWIRL_TRACEBACK"):
            raise
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
