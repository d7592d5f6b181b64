"""Tables of sampled actions."""

from __future__ import annotations

from lightning.pytorch import LightningModule

from swirl_lightning.callbacks.media import Media
from swirl_lightning.callbacks.rollout_writer import RolloutWriter
from swirl_lightning.files.markdown import table, table_cell
from swirl_lightning.roles import Role
from swirl_lightning.training.rollouts import Rollouts


class ActionTable(RolloutWriter):
    """Writes sampled actions to the run's loggers: TensorBoard's text page, for example.

    Phase II: the group of each transition, best reward first, with rewards and advantages. Phase I: the
    latent action z of each transition with the rewards of the futures it led to. Loggers: see
    :class:`swirl_lightning.callbacks.media.Media`.

    Args:
        every_n_steps: optimiser steps between two tables; each phase starts with one.
        max_rows: transitions in a table.

    Raises:
        ValueError: a number is not positive.

    Example::

        >>> from swirl_lightning.callbacks import ActionTable
        >>> callback = ActionTable(every_n_steps=20)
    """

    def write(self, to: Media, rollouts: Rollouts, step: int, pl_module: LightningModule) -> None:
        """Write a table."""
        build = _sampled_actions if rollouts.role == Role.IDM else _latent_actions
        to.text(f"{rollouts.role}/actions", build(rollouts, self.max_rows), step)


def _sampled_actions(rollouts: Rollouts, max_rows: int) -> str:
    size = rollouts.group_size
    rewards, advantages = rollouts.rewards.tolist(), rollouts.advantages.tolist()
    rows = []
    for n, pair in enumerate(rollouts.transitions[:max_rows]):
        group = sorted(range(n * size, (n + 1) * size), key=rewards.__getitem__, reverse=True)
        for place, k in enumerate(group):
            name = table_cell(pair.id) if place == 0 else ""
            action = table_cell(rollouts.actions[k]) or "(empty)"
            rows.append([name, action, f"{rewards[k]:.3f}", f"{advantages[k]:+.2f}"])
    return table(["transition", "action", "reward", "advantage"], rows)


def _latent_actions(rollouts: Rollouts, max_rows: int) -> str:
    groups = rollouts.rewards.float().view(-1, rollouts.group_size)  # (B, G)
    rows = []
    for pair, action, group in zip(rollouts.transitions, rollouts.actions, groups, strict=True):
        figures = (group.mean(), group.max(), group.min())
        name, words = table_cell(pair.id), table_cell(action) or "(empty)"
        rows.append([name, words, *(f"{float(figure):.3f}" for figure in figures)])
    return table(["transition", "latent action z", "mean reward", "best", "worst"], rows[:max_rows])
