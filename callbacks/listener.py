"""Base of the callbacks that are told what an evaluation predicts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from lightning.pytorch import Callback, Trainer

from swirl_lightning.evaluation import Evaluator
from swirl_lightning.transition import State, Transition


class EvaluationListener(Callback, ABC):
    """Callback that gets every batch of predictions between :meth:`listen` and :meth:`stop`.

    An evaluation that ends by an exception stops it, too: Lightning calls no ``on_..._end`` and no ``teardown`` then.
    """

    _evaluator: Evaluator | None = None  # the one that has this listener

    @abstractmethod
    def told(
        self, mode: str, rows: Sequence[Transition], states: Sequence[State | None], words: Sequence[str | None]
    ) -> None:
        """Take a batch of predictions.

        Args:
            mode: ``sampled``, ``greedy`` or ``predict``.
            rows: B transitions.
            states: B predicted states; None where the FWM was not asked.
            words: B predicted actions; None where the IDM was not asked.
        """

    def listen(self, pl_module: Any) -> None:
        """Get the predictions of a module's evaluator from now on."""
        self.stop()
        self._evaluator = pl_module.evaluator
        pl_module.evaluator.listeners.append(self.told)

    def stop(self) -> None:
        """Get no more of them."""
        evaluator, self._evaluator = self._evaluator, None
        if evaluator is not None:
            evaluator.listeners.remove(self.told)

    def on_exception(self, trainer: Trainer, pl_module: Any, exception: BaseException) -> None:
        """Stop listening."""
        self.stop()

    def teardown(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        """Stop listening."""
        self.stop()
