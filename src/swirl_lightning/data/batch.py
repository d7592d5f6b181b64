"""Batch of transitions and its place in the epoch."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise

from swirl_lightning.transition import Transition


class TransitionBatch:
    """Batch of transitions.

    It is neither a dataclass nor a collection. Lightning would search those for tensors, and copy or reject
    frozen records. It therefore cannot infer the batch size: pass ``batch_size=len(batch)`` to ``self.log``.

    Args:
        transitions: the rows of this rank. There may be none in evaluation, if other ranks have a row more.
        index: number of the batch within the epoch, the same whenever the batch is given again.
        replay: number of times that the batch was given before in this epoch.
        labelled: labelled transitions that are trained on beside the batch.
        window: with the first batch of an optimiser step, all batches of that step, itself included; else empty.
    """

    __slots__ = ("index", "labelled", "replay", "transitions", "window")

    def __init__(
        self,
        transitions: Sequence[Transition],
        index: int = 0,
        replay: int = 0,
        labelled: Sequence[Transition] = (),
        window: Sequence[TransitionBatch] = (),
    ) -> None:
        self.transitions = list(transitions)
        self.labelled = list(labelled)
        self.window = list(window)
        self.index = index
        self.replay = replay

    def __len__(self) -> int:
        return len(self.transitions)

    def __repr__(self) -> str:
        names = [row.id for row in self.transitions]
        return f"TransitionBatch({names}, index={self.index}, replay={self.replay})"


def places(batches: Sequence[Sequence[Transition]]) -> list[slice]:
    """Return the place of each batch within all of them, one after the other."""
    return [slice(*ends) for ends in pairwise(accumulate(map(len, batches), initial=0))]
