"""The ``swirl`` command: LightningCLI with fit, validate, test and predict."""

from __future__ import annotations

import os
import re
import signal
import sys
from contextlib import AbstractContextManager, nullcontext
from dataclasses import is_dataclass
from inspect import signature
from pathlib import Path
from traceback import walk_tb
from typing import Any

import torch
from jsonargparse import Namespace, get_loader, set_loader
from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import (
    BasePredictionWriter,
    Checkpoint,
    LearningRateMonitor,
    ModelCheckpoint,
    ProgressBar,
)
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException, SIGTERMException
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from yaml import YAMLError

from swirl_lightning.callbacks import (
    ActionTable,
    AdapterExport,
    CollapseWatch,
    EndOtherRanks,
    FitLock,
    HeldOutStates,
    HyperparameterText,
    MemoryReport,
    MetricGlossary,
    PhaseProgressBar,
    PhaseSwitch,
    Predictions,
    Results,
    SaveAtEnd,
    SaveOnTermination,
    Throughput,
    TransitionImages,
)
from swirl_lightning.callbacks.fit_lock import NAME as FIT_LOCK
from swirl_lightning.callbacks.run_folder import EXPORTS, keep_checkpoints_in_the_run, run_folder
from swirl_lightning.callbacks.save_config import SaveConfig
from swirl_lightning.checkpoints.file import WholeCheckpoints, check_file
from swirl_lightning.checkpoints.finding import NAMES, checkpoints, last_checkpoint, last_of_earlier_versions, places
from swirl_lightning.checkpoints.fit import check_fits
from swirl_lightning.checkpoints.loops import epochs_done
from swirl_lightning.checkpoints.state import UNLIKE, cannot_restore
from swirl_lightning.console.parsing import Parser, shorten, takes_null
from swirl_lightning.console.shipped import import_shipped
from swirl_lightning.data import TransitionDataModule
from swirl_lightning.engine.ranges import check_ranges
from swirl_lightning.files.safe_yaml import guarded
from swirl_lightning.module import SWIRL
from swirl_lightning.results.table import FILE, PREDICTIONS, fitted, read
from swirl_lightning.training.trainer_checks import check_callbacks, check_trainer

set_loader("yaml", guarded(get_loader("yaml")), (YAMLError,))  # of every configuration

TRAINER = {
    "max_epochs": -1,  # the schedule of phases ends the training
    "gradient_clip_val": 1.0,
    "log_every_n_steps": 1,
    "num_sanity_val_steps": 0,
    "enable_model_summary": False,  # it counts a byte of two 4-bit weights as one; MemoryReport counts right
}
"""Defaults of the Trainer's options, which a config overrides as usual."""

CHECKPOINT_STEPS = 20
"""Optimiser steps after which ``last.ckpt`` is written anew within an epoch, which may take a day."""

_NAMED = ("last", "best")
"""What ``--ckpt_path`` may say instead of a path."""


def default_callbacks(config: dict[str, Any], given: list[Callback]) -> list[Callback]:
    """Return the callbacks of every run, without those whose class is among the ``given`` ones.

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
            MetricGlossary,
            HeldOutStates,
            SaveAtEnd,
            SaveOnTermination,
            EndOtherRanks,
            FitLock,
        )
    }
    if config.get("logger") is not False:
        found[LearningRateMonitor] = LearningRateMonitor(logging_interval="step")
    if config.get("enable_progress_bar") is not False:
        found[ProgressBar] = PhaseProgressBar()
    if config.get("enable_checkpointing") is not False and not config.get("fast_dev_run"):
        found[Checkpoint] = ModelCheckpoint(
            filename="{epoch}", save_top_k=-1, save_last=True, enable_version_counter=False
        )
    kept = [callback for kind, callback in found.items() if not any(isinstance(own, kind) for own in given)]
    if found.get(Checkpoint) in kept:
        kept.append(
            ModelCheckpoint(
                save_top_k=0, save_last=True, every_n_train_steps=CHECKPOINT_STEPS, enable_version_counter=False
            )
        )
    return kept


class SwirlCLI(LightningCLI):
    """LightningCLI with the phases as a top-level key: ``phase_switch: {warmup_epochs: 2, iterations: 1}``.

    ``trainer.default_root_dir`` is the run's folder: TensorBoard's logs, checkpoints, results and predictions go there,
    unless ``trainer.logger`` names another. A run has `default_callbacks`; those of ``trainer.callbacks`` are added to
    them, or take the place of one of the same class.
    """

    _checkpoint: dict[str, Any] | None = None
    """The checkpoint that the command goes on from, tensors without data."""

    def __init__(self, model: type, data: type, args: list[str] | None = None, **options: Any) -> None:
        self._command = [*(sys.argv[1:] if args is None else args), ""][0]
        super().__init__(model, data, args=args, **options)

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """Return the command that is asked for, if it is one: preparing the others takes as long for each of them."""
        every = LightningCLI.subcommands()
        return {self._command: every[self._command]} if self._command in every else every

    def _set_seed(self) -> None:
        """Do as Lightning does, whose error does not name the option."""
        try:
            super()._set_seed()
        except ValueError as error:
            raise ValueError(f"seed_everything: {error}") from None

    def _add_instantiators(self) -> None:
        """Leave out Lightning's, which write the configuration into hyperparameters that SWIRL does not save."""

    def add_arguments_to_parser(self, parser: Any) -> None:
        """Add the PhaseSwitch of every run."""
        parser.add_lightning_class_args(PhaseSwitch, "phase_switch")

    def _instantiate_trainer(self, config: Any, callbacks: list[Callback]) -> Trainer:
        """Build the Trainer with the default logger and callbacks."""
        for name in ("devices", "num_nodes"):  # Lightning would start as many processes
            if re.fullmatch("-?[0-9]+", number := str(config.get(name))):
                check_ranges("trainer", {name: int(number)}, **{name: "[-1, 65536]"})
        folder = config.get("default_root_dir")
        if config.get("logger") is None and folder is not None:
            config["logger"] = TensorBoardLogger(folder, name="", version="", default_hp_metric=False)
        plugins = config.get("plugins") or []
        plugins = plugins if isinstance(plugins, list) else [plugins]
        if not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
            config["plugins"] = [*plugins, WholeCheckpoints()]
        own = config.get("callbacks") or []
        own = own if isinstance(own, list) else [own]
        if config.get("fast_dev_run"):  # with save_last, Lightning would write over the last.ckpt of a real run
            own = config["callbacks"] = [callback for callback in own if not isinstance(callback, Checkpoint)]
        trainer = super()._instantiate_trainer(config, [*callbacks, *default_callbacks(config, own)])
        # others read its file
        trainer.callbacks.sort(key=lambda own: not isinstance(own, SaveConfig))  # type: ignore[attr-defined]
        return trainer

    def instantiate_classes(self) -> None:
        """Build Trainer, model and data as Lightning does; an error of a class is told as one of the configuration.

        Raises:
            ValueError: it cannot be built; one line.
        """
        _check_groups(self._get(self.config, "model"))
        for key in ("model", "data"):
            _check_nulls(self._get(self.config, key), key)
        try:
            super().instantiate_classes()
            check_trainer(self.trainer)  # here too: others pickle the model before it can refuse them
        except (ValueError, MisconfigurationException) as error:
            raise ValueError(shorten(str(error))) from error
        except (TypeError, KeyError, AttributeError, RuntimeError) as error:
            raise ValueError(f"{type(error).__name__}: {shorten(str(error))}") from error

    def _run_subcommand(self, subcommand: str) -> None:
        """Do as Lightning does, from a checked checkpoint, with what the user can mend as a ValueError."""
        try:
            keep_checkpoints_in_the_run(self.trainer)
            _check_places(run_folder(self.trainer), subcommand)
            self._find_checkpoint(subcommand)
            if subcommand == "fit":  # some load the base in their own setup, which comes before the module's
                check_callbacks(self.trainer)
            with self._termination():
                super()._run_subcommand(subcommand)
        except (MisconfigurationException, torch.OutOfMemoryError) as error:
            raise ValueError(str(error)) from error
        except UNLIKE as error:
            if str(error).startswith("Early stopping conditioned on metric"):  # that lists those there are
                raise ValueError(f"trainer.callbacks: {error}") from error
            if not _restoring(error):
                raise
            path = self.config_init[subcommand].get("ckpt_path")
            raise cannot_restore(f"checkpoint {path}", error, shorten(str(error))) from error
        except SIGTERMException as end:
            sys.exit(end.code or 128 + signal.SIGTERM)  # as shells say it; Lightning would end with 0

    def _termination(self) -> AbstractContextManager[None]:
        callbacks = self.trainer.callbacks  # type: ignore[attr-defined]
        found = next((c for c in callbacks if isinstance(c, SaveOnTermination)), None)
        return nullcontext() if found is None else found.listening()

    def _find_checkpoint(self, subcommand: str) -> None:
        """Set ``ckpt_path`` to the file that ``last`` means, and keep a new training off the checkpoints of another.

        Raises:
            FileNotFoundError: there is none, and the command is not fit, which then begins.
            ValueError: the file cannot serve with these settings, or a fit that does not go on from it would write over
                it: one without ``ckpt_path``, or with that of another run.
        """
        options = self.config_init[subcommand]
        fitting = subcommand == "fit"
        given = options.get("ckpt_path")
        kept = min(checkpoints(self.trainer), key=lambda path: path.name != "last.ckpt", default=None)
        left, found = kept or _left(self.trainer), None
        if given == "last":  # only then, as it reads them all
            find = last_of_earlier_versions if left is None else last_checkpoint
            found = find(self.trainer, resume=fitting)
        if found is not None:
            if kept is None or found.name != "last.ckpt":
                lacking = "none yet in this run's folder" if kept is None else "no newer last.ckpt"
                rank_zero_warn(f"--ckpt_path last: there is {lacking}; the newest checkpoint is {found}")
            self._checkpoint = check_file(found, resume=fitting)
            options["ckpt_path"] = str(found)
        elif given == "last" and fitting and left is None:  # Lightning would say that none is ever written
            options["ckpt_path"] = None
            rank_zero_info("--ckpt_path last: there is none yet, so the training begins")
        elif given == "last" and not fitting:
            folder = run_folder(self.trainer)
            looked = "a fast_dev_run looks for none" if self.trainer.fast_dev_run else f"there is none in {folder}"  # type: ignore[attr-defined]
            beside = [Path(path).parent for path in options.get("config") or () if path]
            moved = next((run for run in beside if any((run / "checkpoints").glob(NAMES))), folder)
            cure = "train first, or name one"
            if moved.resolve() != folder.resolve() and not self.trainer.fast_dev_run:  # type: ignore[attr-defined]
                cure = f"the run of that config lies in {moved}: add --trainer.default_root_dir {moved}"
            raise FileNotFoundError(f"--ckpt_path last: {looked}; {cure}")
        elif fitting and left is not None and (given == "last" or _of_another(self.trainer, given)):
            cure = "go on from it with --ckpt_path last, " if left == kept else ""
            raise ValueError(
                f"{left} is of an earlier run, and this one would write over it: {cure}give another "
                "trainer.default_root_dir, or remove that run's folder"
            )
        elif given is None and subcommand == "predict":
            rank_zero_warn(
                "no --ckpt_path is given: the predictions are those of the base alone, which has been trained on "
                "nothing of this task"
            )
        if self._checkpoint is not None:  # before the base loads, which may take minutes
            check_fits(self._checkpoint, self.model)
            if fitting:
                trial = self.trainer.fast_dev_run  # type: ignore[attr-defined]  # of one epoch, until PhaseSwitch sets it up
                options["phase_switch"].check_resume(self._checkpoint, None if trial else self.trainer.max_epochs)
                self.datamodule.first_epoch = epochs_done(self._checkpoint)

    def before_predict(self) -> None:
        """Write predictions to files by :class:`Predictions`, unless the config has a writer of its own."""
        if not any(isinstance(c, (Predictions, BasePredictionWriter)) for c in self.trainer.callbacks):  # type: ignore[attr-defined]
            self.trainer.callbacks.append(Predictions())  # type: ignore[attr-defined]
        self.config.predict.return_predictions = False  # they are not read, and images would fill the memory

    def _parse_ckpt_path(self) -> None:
        """Refuse a missing or broken checkpoint before a model is loaded, and take no setting from any.

        Lightning's own method, not called here, puts a checkpoint's ``hyper_parameters`` over the user's
        configuration: class paths and ``trust_remote_code`` included, so that a file of weights runs code.
        """
        subcommand = self.config.get("subcommand")
        path = self.config.get(subcommand, {}).get("ckpt_path")
        if path and path not in _NAMED:
            self._checkpoint = check_file(path, resume=subcommand == "fit")


def _check_groups(model: Namespace) -> None:
    """Raise ValueError for a null, or a value, where options belong: jsonargparse names neither."""
    options = model.get("init_args", Namespace())
    for name, parameter in signature(SWIRL).parameters.items():
        if is_dataclass(parameter.default) and not isinstance(given := options.get(name, Namespace()), Namespace):
            raise ValueError(f"model.{name} must be a mapping of its options, got {given}: leave it out for defaults")


def _check_nulls(given: Any, place: str) -> None:
    """Raise ValueError for a null that the type of a class's option forbids: within classes, jsonargparse does not."""
    if not isinstance(given, Namespace) or "class_path" not in given:
        return
    for name, value in given.get("init_args", Namespace()).__dict__.items():
        if value is None and not takes_null(given.class_path, name):
            raise ValueError(f"{place}.{name} must not be null: leave it out for its default")
        _check_nulls(value, f"{place}.{name}")


def _check_places(folder: Path, subcommand: str) -> None:
    """Raise ValueError if a run cannot write where it will, which would be found after its training."""
    locks = [(folder / FILE).with_suffix(".lock"), folder / FIT_LOCK]
    files = [*folder.glob("config*.yaml"), folder / FILE, *locks]
    folders = [folder, *(folder / name for name in (EXPORTS, "checkpoints", PREDICTIONS))]
    wrong = [(path, "folder") for path in files if path.is_dir()]
    wrong += [(path, "file") for path in folders if path.exists() and not path.is_dir()]
    for path, kind in wrong:
        raise ValueError(f"{path} is a {kind}, and a run writes something else there: move it away")
    described = folder / ("config.yaml" if subcommand == "fit" else f"config_{subcommand}.yaml")
    written = {"fit": [*folders[:-1], *locks], "predict": [folder, folders[-1]]}
    for path in [*written.get(subcommand, [folder, locks[0]]), described]:
        if path.exists() and not os.access(path, os.W_OK):
            raise ValueError(f"{path} may not be written: change its rights, or give another trainer.default_root_dir")


def _restoring(error: BaseException) -> bool:
    """Tell whether an error came while Lightning restored a checkpoint."""
    codes = [frame.f_code for frame, _ in walk_tb(error.__traceback__)]
    return any(Path(code.co_filename).stem == "checkpoint_connector" and "restore" in code.co_name for code in codes)


def _of_another(trainer: Trainer, path: str | None) -> bool:
    """Tell whether a fit begins a new run, with nothing or with a checkpoint from outside the folders it writes to."""
    if trainer.fast_dev_run or path in _NAMED:  # type: ignore[attr-defined]
        return False
    if path is None:
        return True
    given, folder = Path(path).resolve(), run_folder(trainer)
    return given.parent != folder.resolve() and given not in [own.resolve() for own in checkpoints(trainer)]


def _left(trainer: Trainer) -> str | None:
    """Find what an earlier fit has left besides checkpoints: exports, or rows of a run that writes no checkpoint."""
    if trainer.fast_dev_run:  # type: ignore[attr-defined]
        return None
    folder = run_folder(trainer)
    exports = sorted(folder.glob(f"{EXPORTS}/*/swirl.json"))
    names = [path.parent.name for path in exports]
    if len(names) > 1 or names == ["last"]:  # another one may be of a run that was killed before its first checkpoint
        return str(exports[0].parent)
    return str(folder / FILE) if not places(trainer) and fitted(read(folder / FILE)) else None


def swirl_cli(args: list[str] | None = None, run: bool = True) -> SwirlCLI:
    """Parse the arguments of the ``swirl`` command, and build trainer, model and data from them.

    Args:
        args: arguments, None for those of the command line; with ``run``, the subcommand comes first.
        run: run the subcommand; False only builds trainer, model and data.
    """
    import_shipped()
    return SwirlCLI(
        SWIRL,
        TransitionDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        save_config_callback=SaveConfig,
        save_config_kwargs={"overwrite": True},
        parser_class=Parser,
        auto_configure_optimizers=False,
        parser_kwargs={"prog": "swirl"},
        seed_everything_default=0,
        trainer_defaults=TRAINER,
        run=run,
        args=args,
    )


if __name__ == "__main__":
    sys.exit("error: swirl_lightning.cli is no command: use swirl, or python -m swirl_lightning")
