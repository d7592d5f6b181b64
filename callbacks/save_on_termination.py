"""An orderly end when the process is asked to end: by Ctrl+C, or by schedulers of clusters before they kill it."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_only, rank_zero_warn

from swirl_lightning.callbacks.run_folder import place_of_last
from swirl_lightning.console.streams import STANDARD, outliving_readers, say_at_once, to_nowhere


class SaveOnTermination(Callback):
    """Ends a run at the first batch that ends after SIGTERM, on all ranks at once; a training writes ``last.ckpt``.

    The signal may reach all ranks or one of them. A training that it ends within a validation begins that validation
    anew when it is resumed. Before the first batch it ends the process without a checkpoint.

    In a command, the first Ctrl+C (SIGINT) does the same; the second one ends the process at once. So does a terminal
    that is closed (SIGHUP), unless the command is started to ignore that, as by nohup; and a reader of its output that
    ends, as a ``| tee`` may.

    Under SLURM, SIGUSR1 does the same, and the job is requeued: with ``--ckpt_path last`` in its command it goes on.

    Lightning's own handlers call a collective wherever the signal finds its rank, and the others wait for ever; that of
    SIGUSR1 saves a training in the middle of a batch.

    Example:
        >>> from swirl_lightning.callbacks import SaveOnTermination
        >>> callback = SaveOnTermination()
    """

    def __init__(self) -> None:
        self._asked: int | None = None  # the signal
        self._requeue = self._running = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Handle the signals from now on: Lightning does so only when the base is loaded, and Ctrl+C saves nothing.

        Raises:
            SIGTERMException: in the block, when SIGTERM, SIGHUP or Ctrl+C comes, or a reader goes, before the first
                batch; its code is that of shells.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        handlers = {signal.SIGTERM: self._ask, signal.SIGINT: self._interrupt}
        if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) == signal.SIG_DFL:
            handlers[signal.SIGHUP] = self._hang_up
        before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        try:
            with outliving_readers(partial(self._ask, getattr(signal, "SIGPIPE", signal.SIGTERM))):
                yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _ask(self, number: int = signal.SIGTERM, *_: Any) -> None:
        if not self._running:
            raise SIGTERMException(128 + number)
        self._asked = self._asked or number  # Ctrl+C ends a ``| tee``, too

    def _hang_up(self, number: int, *_: Any) -> None:
        to_nowhere(*STANDARD)  # a ``| tee`` goes with the terminal
        self._ask(number)

    def _interrupt(self, *_: Any) -> None:
        if not self._running or self._asked == signal.SIGINT:
            rank_zero_only(say_at_once)("interrupted")
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # until the end: it would interrupt the shutdown
            raise SIGTERMException(128 + signal.SIGINT)  # of a KeyboardInterrupt Lightning makes the code 1
        self._asked = signal.SIGINT
        rank_zero_only(say_at_once)("ending when this batch is done; Ctrl+C again ends at once")

    def _ask_and_requeue(self, *_: Any) -> None:
        self._requeue = True
        self._ask()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take the place of Lightning's handlers, which it registers later on."""
        trainer._signal_connector._sigterm_notifier_fn = self._ask  # type: ignore[method-assign, assignment]
        trainer._signal_connector._slurm_sigusr_handler_fn = self._ask_and_requeue  # type: ignore[method-assign, assignment]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Wait for the end of a batch from now on."""
        self._running = True

    on_sanity_check_start = on_validation_start = on_test_start = on_predict_start = on_train_start

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Save and end if the signal has come to a rank. Collective.

        Raises:
            SIGTERMException: on every rank.
        """
        if not trainer.strategy.reduce_boolean_decision(self._asked is not None, all=False):
            return
        fitting = trainer.state.fn == "fit" and not trainer.sanity_checking
        if fitting and (path := place_of_last(trainer)) is not None:
            trainer.save_checkpoint(path, weights_only=False)  # the optimiser, too; nothing is loaded
            rank_zero_info(f"asked to end: saved {path}; go on with --ckpt_path last")
        if trainer.strategy.reduce_boolean_decision(self._requeue, all=False) and trainer.is_global_zero:
            _requeue_job()
        raise SIGTERMException(128 + (self._asked or signal.SIGTERM))

    on_validation_batch_end = on_test_batch_end = on_predict_batch_end = on_train_batch_end  # type: ignore[assignment]

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forget the signal, for a Trainer that is used again."""
        self._asked, self._requeue, self._running = None, False, False


def _requeue_job() -> None:
    """Ask SLURM to run this job again; warn if it does not."""
    array, job = (os.environ.get(f"SLURM_{name}") for name in ("ARRAY_JOB_ID", "JOB_ID"))
    name = f"{array}_{os.environ.get('SLURM_ARRAY_TASK_ID')}" if array else str(job)
    try:
        done = subprocess.run(["scontrol", "requeue", name], capture_output=True, text=True)
        problem = done.stderr.strip() if done.returncode else ""
    except OSError as error:
        problem = str(error)
    if problem:
        rank_zero_warn(f"SLURM has not requeued job {name} ({problem}): start it again yourself")
