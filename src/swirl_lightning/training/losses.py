"""Losses of the phases, and their one denominator over micro-batches and ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import Strategy
from torch import Tensor

from swirl_lightning.engine.grammar import TokenIds
from swirl_lightning.engine.scoring import LogProbs
from swirl_lightning.roles import Role
from swirl_lightning.training.grpo import token_weights
from swirl_lightning.training.rollouts import Update
from swirl_lightning.world_models import WorldModel, WorldModels


class SharedDenominator:
    """Denominator that makes one mean of the sums of micro-batches and ranks.

    A micro-batch's loss is a sum, and its denominator (tokens or rows) is kept here until the optimiser step.
    """

    def __init__(self) -> None:
        self._total: Tensor | None = None  # since the last optimiser step

    def add(self, denominator: Tensor) -> None:
        """Count a micro-batch's scalar."""
        # a copy: what a learner keeps for the replays would be summed over the ranks in place
        self._total = denominator.detach().clone() if self._total is None else self._total + denominator.detach()

    def divide(self, optimizer: torch.optim.Optimizer, trainer: Trainer) -> None:
        """Divide summed gradients by the global batch's tokens (or rows). Collective.

        Lightning has divided by ``accumulate_grad_batches`` and DDP by the number of ranks; both are
        undone here, so that k micro-batches on W ranks are exactly one batch of k * W times the size.
        """
        if self._total is None:
            return
        total = trainer.strategy.reduce(self._total, reduce_op="sum")
        # 0 of a learner that trains on no rollout of this step: so is supervision, which weighs relative to them
        scale = (trainer.accumulate_grad_batches * trainer.world_size / total).where(total != 0, 0)
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.grad.mul_(scale)
        self._total = None

    def clear(self) -> None:
        """Forget the micro-batches of a step that was not taken."""
        self._total = None

    def state(self, module: LightningModule, **beside: Any) -> dict[str, Any]:
        """Return the window so far, for a checkpoint within it: the denominator and summed gradients; {} between two.

        Args:
            module: its parameters have the gradients, which Lightning has divided by ``accumulate_grad_batches``.
            beside: what else belongs to the window.
        """
        if self._total is None:
            return {}
        gradients = {name: p.grad.cpu() for name, p in module.named_parameters() if p.grad is not None}
        accumulated = module.trainer.accumulate_grad_batches
        return {"denominator": self._total.cpu(), "gradients": gradients, "accumulated": accumulated, **beside}

    def restore(self, module: LightningModule, state: dict[str, Any]) -> None:
        """Go on within the window of :meth:`state`; parameters and their gradients are on the module's device.

        The rest of the window may be divided by another ``accumulate_grad_batches``, as then the gradients are.
        """
        if not state:
            return
        parameters, divisor = dict(module.named_parameters()), module.trainer.accumulate_grad_batches
        for name, gradient in state["gradients"].items():
            parameters[name].grad = gradient.to(parameters[name]) * (state.get("accumulated", divisor) / divisor)
        self._total = state["denominator"].to(next(iter(parameters.values())).device)


@dataclass
class Loss:
    """Loss of a micro-batch: a sum, and its share of the denominator over micro-batches and ranks.

    Attributes:
        total: scalar with gradient.
        denominator: scalar.
        sequences: number of sequences that ``denominator`` counts; supervision weighs relative to them.
        normalization: weighting of their tokens; see :func:`token_weights`.
        metrics: scalars for the log, the same names on every rank.
        tokens: number of tokens that were scored.
        weight: number of tokens that the metrics are means over; None where they are means over the pairs.
    """

    total: Tensor
    denominator: Tensor
    sequences: int
    normalization: str
    metrics: Mapping[str, Tensor | float]
    tokens: int
    weight: int | None = None

    def add_supervised(self, scored: LogProbs, weight: float, longest: int) -> None:
        """Add M sequences of supervised training, with ``weight`` times the weight of all others together.

        By the normalisations ``token`` and ``constant`` each token weighs as much as one of the others, so that
        sequences weigh by their length.

        The number of sequences is in the factor and not in the denominator, so that micro-batches with equally
        many sequences of both sorts add up to exactly one large batch.

        Args:
            scored: log-probabilities of the M sequences, with gradient.
            weight: relative to the :attr:`sequences` that are there.
            longest: tokens of the longest sequence, for the normalisation ``constant``.
        """
        weights, _ = token_weights(scored.mask, self.normalization, longest)
        self.total = self.total - weight * self.sequences / len(scored.mask) * (weights * scored.values).sum()
        self.tokens += int(scored.mask.sum())


def score_update(
    model: WorldModel,
    update: Update,
    rows: Sequence[int],
    temperature: float,
    training: bool = False,
    dropout: bool = True,
) -> LogProbs:
    """Compute log-probabilities of rows of an update: see :meth:`swirl_lightning.world_models.WorldModel.score_ids`."""
    size = update.group_size
    groups = dict.fromkeys(n // size for n in rows)
    whole = list(rows) == [group * size + n for group in groups for n in range(size)]
    return model.score_ids(
        [update.prompts[n] for n in rows],
        [update.completions[n] for n in rows],
        group_size=size if whole else 1,  # a prompt is found once for its group
        temperature=temperature,
        training=training,
        dropout=dropout,
    )


def sft_log_probs(
    models: WorldModels,
    before: Sequence[TokenIds],
    actions: Sequence[TokenIds],
    after: Sequence[TokenIds],
    roles: Sequence[Role],
    after_seen: Sequence[TokenIds] | None = None,
) -> dict[Role, LogProbs]:
    """Compute log-probabilities with gradient for supervised training: P(y | x, z) and Q(z | x, y), by ``roles``.

    Args:
        models: both of them.
        before: B states x.
        actions: B actions z.
        after: B states y.
        roles: the models that train.
        after_seen: y as the IDM reads it; None for ``after``.
    """
    scored = {}
    if Role.FWM in roles:
        scored[Role.FWM] = models.fwm.log_prob(after, before, actions, training=True)
    if Role.IDM in roles:
        scored[Role.IDM] = models.idm.log_prob(actions, before, after_seen or after, training=True)
    return scored


def std_over_ranks(values: Tensor, strategy: Strategy) -> Tensor:
    """Compute the standard deviation, a scalar, of (N,) values and those of all other ranks. Collective."""
    values = values.double()
    sums = torch.stack([values.new_tensor(float(len(values))), values.sum(), values.square().sum()])
    count, total, squares = strategy.reduce(sums, reduce_op="sum")
    return ((squares - total.square() / count) / (count - 1)).clamp(min=0).sqrt().float()
