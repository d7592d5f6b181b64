"""Diversity of the sampled actions, phase by phase."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from swirl_lightning.callbacks.rollout_writer import rollouts_of
from swirl_lightning.checkpoints.state import UNLIKE, cannot_restore
from swirl_lightning.engine.ranges import check_ranges
from swirl_lightning.ranks import over_ranks, place

_NOT_SAMPLED = (0, -1)
"""In place of a counterfactual action, so that every rank has a row for each of its pairs."""


class CollapseWatch(Callback):
    """Logs the diversity and the length of the sampled actions, for each phase of each iteration.

    The paper's collapse checks on latent actions, one a pair (z in Phase I, the first ẑ of each group in Phase II),
    over all ranks, without counterfactual ones:

    - ``<phase>/unique_actions``: number of different actions / number of actions (above 0.94 there).
    - ``<phase>/action_length``: their mean length in tokens (16.8 there, 7.2 for human labels).
    - ``<phase>/effective_actions``: exp of the entropy of the actions' frequencies, for worlds with few
      actions, where the share is always small.

    They survive a resume within a phase. After one on another number of ranks they cover only the rest of the phase,
    and one within a window of accumulated gradients leaves out the rest of that window.

    Args:
        threshold: warn when a share falls below this part of its value in the first iteration.

    Raises:
        ValueError: ``threshold`` is not in [0, 1].

    Example::

        >>> from swirl_lightning.callbacks import CollapseWatch
        >>> callback = CollapseWatch(threshold=0.8)
    """

    def __init__(self, threshold: float = 0.8) -> None:
        check_ranges("CollapseWatch", {"threshold": threshold}, threshold="[0, 1]")
        self.threshold = threshold
        self._first: dict[str, float] = {}
        self._seen: list[tuple[int, int]] = []  # (hash, length) of each action of this phase and rank

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forget an earlier run where a training begins; what a checkpoint holds is loaded after this."""
        if stage == "fit" and trainer.current_epoch == 0:
            self._first, self._seen = {}, []

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start counting."""
        self._seen = []

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the step's actions."""
        rollouts = rollouts_of(outputs)
        if rollouts is not None:
            encode = pl_module.backbone.encode_action  # type: ignore[union-attr]
            actions = rollouts.actions[:: len(rollouts.actions) // len(rollouts.transitions)]
            for action, pair in zip(actions, rollouts.transitions, strict=True):
                sampled = not pair.counterfactual
                self._seen.append((_hash(action), len(encode(action))) if sampled else _NOT_SAMPLED)  # type: ignore[operator]

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the phase's figures, and warn; not where ``max_steps`` or ``max_time`` has cut it, as a run may go on."""
        if not self._seen or not trainer.is_last_batch:  # a phase without rollouts: on every rank
            return
        # training gives every rank the same number of rows, so the shapes agree
        seen = pl_module.all_gather(torch.tensor(self._seen, device=pl_module.device))  # (ranks,) N 2
        seen = seen.reshape(-1, 2)  # type: ignore[union-attr]
        hashes, lengths = seen[seen[:, 1] >= 0].unbind(1)
        if not len(hashes):
            return
        counts = hashes.unique(return_counts=True)[1]
        share = len(counts) / len(hashes)
        frequencies = counts.float() / len(hashes)
        figures = {
            "unique_actions": share,
            "action_length": float(lengths.float().mean()),
            "effective_actions": float(torch.exp(-(frequencies * frequencies.log()).sum())),
        }
        phase = str(pl_module.phase.name)  # type: ignore[union-attr]
        # all ranks have computed the same values
        pl_module.log_dict({f"{phase}/{k}": v for k, v in figures.items()}, batch_size=1, sync_dist=False)
        first = self._first.setdefault(phase, share)
        if share < self.threshold * first:
            rank_zero_warn(
                f"latent actions may be collapsing: in phase {phase!r} of epoch {trainer.current_epoch} "
                f"{share:.1%} of the sampled actions are unique, {first:.1%} in the first iteration"
            )
        self._seen = []

    def state_dict(self) -> dict[str, Any]:
        """Return the shares of the first iteration, and each rank's actions of this phase. Collective."""
        return {"first": dict(self._first), "seen": over_ranks(torch.tensor(self._seen).view(-1, 2))}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore them; ValueError if the state is none of this callback."""
        rank, ranks = place()
        try:
            self._first = {str(phase): float(share) for phase, share in state_dict["first"].items()}
            seen = state_dict.get("seen", [])
            self._seen = [(int(name), int(length)) for name, length in seen[rank]] if len(seen) == ranks else []
        except (ValueError, *UNLIKE) as error:
            raise cannot_restore("CollapseWatch in the checkpoint", error, str(error)) from None


def _hash(action: str) -> int:
    """Hash an action's words to 63 bits."""
    return int.from_bytes(hashlib.blake2b(action.encode(), digest_size=8).digest(), "little") >> 1
