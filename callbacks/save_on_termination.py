"""An orderly end when the process is asked to end, as schedulers of clusters do before they kill it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException
from lightning.pytorch.utilities.rank_zero import rank_zero_info


class SaveOnTermination(Callback):
    """Ends a run at the first batch that ends after SIGTERM, on all ranks at once; a training writes ``last.ckpt``.

    The signal may reach all ranks or one of them. A training that it ends within a validation begins that validation
    anew when it is resumed. Before the first batch it ends the process without a checkpoint.

    Lightning's own handler calls a collective wherever the signal finds its rank, and the others wait for ever.

    Example:
        >>> from swirl_lightning.callbacks import SaveOnTermination
        >>> callback = SaveOnTermination()
    """

    def __init__(self) -> None:
        self._asked = self._running = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Handle the signal from now on: Lightning does so only when the base is loaded.

        Raises:
            SIGTERMException: in the block, when the signal comes before the first batch.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.signal(signal.SIGTERM, self._ask)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)

    def _ask(self, *_: Any) -> None:
        if not self._running:
            raise SIGTERMException
        self._asked = True

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take the place of Lightning's handler."""
        trainer._signal_connector._sigterm_notifier_fn = self._ask  # type: ignore[method-assign, assignment]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Wait for the end of a batch from now on."""
        self._running = True

    on_sanity_check_start = on_validation_start = on_test_start = on_predict_start = on_train_start

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Save and end if the signal has come to a rank. Collective.

        Raises:
            SIGTERMException: on every rank.
        """
        if not trainer.strategy.reduce_boolean_decision(self._asked, all=False):
            return
        keeper = next((c for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint)), None)
        fitting = trainer.state.fn == "fit" and not trainer.sanity_checking
        if fitting and keeper is not None and keeper.dirpath is not None:
            path = Path(keeper.dirpath, keeper.CHECKPOINT_NAME_LAST + keeper.FILE_EXTENSION)
            trainer.save_checkpoint(path)
            rank_zero_info(f"SIGTERM: saved {path}; go on with --ckpt_path last")
        raise SIGTERMException

    on_validation_batch_end = on_test_batch_end = on_predict_batch_end = on_train_batch_end  # type: ignore[assignment]

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forget the signal, for a Trainer that is used again."""
        self._asked = self._running = False
