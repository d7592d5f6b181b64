"""Tokens that a state may have, so that Phase I does not teach the FWM to write the action into the state."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from swirl_lightning.engine.grammar import TokenIds
from swirl_lightning.engine.samples import Samples
from swirl_lightning.engine.scoring import LogProbs
from swirl_lightning.world_model_module import WorldModelModule

IMPOSSIBLE = -100.0
"""Log-probability of every token of an action after a state that no state can be, in nats."""


class KnownTokens:
    """Tokens of the states of labelled triples.

    The IDM names an action readily where a state says it in so many words, which no true state does. A policy that is
    rewarded by the IDM finds such states, and they are the likeliest that the reward accepts.

    Args:
        module: encodes the states of its Trainer's data.
        asked: False lets every ŷ pass.
    """

    def __init__(self, module: WorldModelModule, asked: bool) -> None:
        self._module, self.asked = module, asked
        self._ids: frozenset[int] | None = None

    def judge(self, judged: LogProbs, x: Sequence[TokenIds], y: Sequence[TokenIds], drawn: Samples) -> LogProbs:
        """Make actions impossible after each ŷ with a token that neither x, y nor a known state has.

        Args:
            judged: log Q of the action after each of N = B * G samples, (N, L).
            x: B states before, content ids.
            y: B observed states after.
            drawn: the N samples ŷ.
        """
        if not self.asked:
            return judged
        if self._ids is None:
            data: Any = self._module.trainer.datamodule  # type: ignore[attr-defined]
            ids: set[int] = set()
            every = len(self._module.models.fwm.grammar.content_ids)
            for row in data.split("warmup"):  # one at a time: images are decoded when they are asked for
                ids.update(*self._module.states.encode([row.before, row.observed], self._module.device))
                if len(ids) == every:
                    break
            self._ids = frozenset(ids)
        allowed = [self._ids.union(*both) for both in zip(x, y, strict=True)]
        size = drawn.group_size
        strange = [not allowed[n // size].issuperset(content) for n, content in enumerate(drawn.contents)]
        rows = torch.tensor(strange, device=judged.values.device)[:, None] & judged.mask
        return judged._replace(values=judged.values.masked_fill(rows, IMPOSSIBLE))

    def clear(self) -> None:
        """Forget them, for other data."""
        self._ids = None
