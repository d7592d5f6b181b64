"""The same held-out transitions after each validation, one row a validation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning.pytorch import Trainer
from PIL import Image

from swirl_lightning.callbacks.listener import EvaluationListener
from swirl_lightning.callbacks.media import media
from swirl_lightning.callbacks.transition_images import image_grid
from swirl_lightning.engine.ranges import check_ranges
from swirl_lightning.files.markdown import table, table_cell
from swirl_lightning.transition import State, Transition

_MOST = 12  # validations that are shown, the last ones


class HeldOutStates(EvaluationListener):
    """Shows what the FWM predicts of a few validation transitions, a row for each validation of the run so far.

    The first rows are x with the action, and the true y. Texts become a table. A resumed run begins with new rows.

    Args:
        count: number of transitions, the first ones of the validation split.

    Raises:
        ValueError: ``count`` is not positive.

    Example::

        >>> from swirl_lightning.callbacks import HeldOutStates
        >>> callback = HeldOutStates(count=6)
    """

    def __init__(self, count: int = 4) -> None:
        check_ranges("HeldOutStates", {"count": count}, count="whole [1, inf)")
        self.count = count
        self._rows: list[tuple[str, list[State]]] = []  # name of the weights, and their predictions
        self._now: dict[str, list[tuple[Transition, State]]] = {}  # by mode

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        """Begin with new rows where a training begins."""
        if stage == "fit" and trainer.current_epoch == 0:
            self._rows = []

    def on_validation_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Listen to the evaluator."""
        self._now = {}
        if not trainer.sanity_checking:
            self.listen(pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Show the rows."""
        self.stop()
        shown = next(iter(self._now.values()), [])
        if not shown:
            return
        self._rows = [*self._rows, (f"{pl_module.label}, step {trainer.global_step}", [y for _, y in shown])][-_MOST:]
        known = [transition for transition, _ in shown]
        before = [transition.before for transition in known]
        after = ["" if transition.after is None else transition.after for transition in known]
        lines: list[tuple[str, list[State]]] = [("before", before), ("after", after), *self._rows]
        to, step = media(trainer), trainer.global_step
        if all(isinstance(state, str) for _, states in lines for state in states):
            cells = [[name, *(table_cell(state) for state in states)] for name, states in lines]
            to.text("val/held_out", table(["", *(table_cell(row.action) for row in known)], cells), step)
            return
        actions = [row.action or "" for row in known]
        rest = [""] * (len(known) - 1)
        captions = [actions, ["after", *rest], *([name, *rest] for name, _ in self._rows)]
        rows = list(zip([states for _, states in lines], captions, strict=True))
        to.image("val/held_out", image_grid(rows, [""] * len(known)), step)

    def told(
        self, mode: str, rows: Sequence[Transition], states: Sequence[State | None], words: Sequence[str | None]
    ) -> None:
        """Keep the first predictions of each mode."""
        kept = self._now.setdefault(mode, [])
        for row, state in zip(rows, states, strict=True):
            if state is not None and len(kept) < self.count:
                kept.append((row, state.copy() if isinstance(state, Image.Image) else state))
