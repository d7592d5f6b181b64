"""The losses of the phases, and their one denominator over micro-batches and ranks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import Strategy
from torch import Tensor

from swirl_lightning.engine.grammar import TokenIds
from swirl_lightning.engine.scoring import LogProbs
from swirl_lightning.roles import Role
from swirl_lightning.training.grpo import GRPOConfig, grpo_loss, token_weights
from swirl_lightning.training.rollouts import Update
from swirl_lightning.world_models import WorldModel, WorldModels


class SharedDenominator:
    """Makes the sums of micro-batches and ranks one mean.

    A micro-batch's loss is a sum, and its denominator (tokens or rows) is kept here until the optimiser step.
    """

    def __init__(self) -> None:
        self._total: Tensor | None = None  # since the last optimiser step

    def add(self, denominator: Tensor) -> None:
        """Count a micro-batch's scalar."""
        denominator = denominator.detach()
        self._total = denominator if self._total is None else self._total + denominator

    def divide(self, optimizer: torch.optim.Optimizer, trainer: Trainer) -> None:
        """Divide summed gradients by the global batch's tokens (or rows). Collective.

        Lightning has divided by ``accumulate_grad_batches`` and DDP by the number of ranks; both are
        undone here, so that k micro-batches on W ranks are exactly one batch of k * W times the size.
        """
        if self._total is None:
            return
        total = trainer.strategy.reduce(self._total, reduce_op="sum")
        scale = trainer.accumulate_grad_batches * trainer.world_size / total
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.grad.mul_(scale)
        self._total = None


def policy_loss(
    models: WorldModels, role: Role, update: Update, grpo: GRPOConfig, temperature: float, anchor_weight: float
) -> tuple[Tensor, Tensor, dict[str, Tensor], int]:
    """Clipped surrogate + β KL (+ λ anchor), summed over a micro-batch (GRPO eq. 3).

    Args:
        models: of which ``role`` is the policy.
        role: the policy.
        update: the rollouts. ``update.old`` is set if this is their first use.
        grpo: β, ε and how tokens are weighted.
        temperature: of policy, old and reference log-probabilities.
        anchor_weight: λ of -log P(y | x, z) for the observed y.

    Returns:
        loss and denominator, scalars; metrics for the log; number of tokens that were scored.
    """
    adapter, longest = models.adapters.policy(role), models.grammars[role].free_length
    rows = update.teaching_rows()
    policy = score_update(models, role, update, rows, temperature, training=True)
    if update.old is None:
        update.old = policy.values.detach()  # on-policy: the ratio is 1, its gradient is not
    reference = None if update.reference is None else update.reference[rows]
    loss, denominator, metrics = grpo_loss(policy, update.old, reference, update.advantages[rows], grpo, longest)
    if left_out := sorted(set(range(len(update.prompts))) - set(rows)):  # they count as the zeros they are
        mask = models.token_mask(role, [update.completions[n] for n in left_out])
        denominator = denominator + token_weights(mask, grpo.loss_normalization, longest)[1]
    if anchor_weight > 0 and update.observed:
        observed = models.score(role, adapter, update.group_prompts, update.observed, training=True)
        # an anchor counts as G sequences, so that λ weights it against the whole group
        weights, _ = token_weights(observed.mask, grpo.loss_normalization, longest)
        loss = loss - anchor_weight * update.group_size * (weights * observed.values).sum()
        metrics["anchor_nll"] = -observed.mean_per_token().mean()
    return loss, denominator, metrics, int(policy.mask.sum())


def score_update(
    models: WorldModels,
    role: Role,
    update: Update,
    rows: Sequence[int],
    temperature: float,
    model: WorldModel | None = None,
    training: bool = False,
) -> LogProbs:
    """Log-probabilities of some rows of an update under the policy, or under another ``model`` of that role."""
    return models.score(
        role,
        (model or models.of(role)).adapter,
        [update.prompts[n] for n in rows],
        [update.completions[n] for n in rows],
        group_size=update.group_size,
        temperature=temperature,
        training=training,
    )


def sft_log_probs(
    models: WorldModels,
    before: Sequence[TokenIds],
    actions: Sequence[TokenIds],
    after: Sequence[TokenIds],
    roles: Sequence[Role],
    after_seen: Sequence[TokenIds] | None = None,
) -> dict[Role, LogProbs]:
    """Log-probabilities of supervised training with gradient: P(y | x, z) and Q(z | x, y), as far as ``roles`` say.

    Args:
        models: both of them.
        before: B states x.
        actions: B actions z.
        after: B states y.
        roles: the models that train.
        after_seen: y as the IDM sees it; None for ``after``.
    """
    scored = {}
    if Role.FWM in roles:
        scored[Role.FWM] = models.fwm.log_prob(after, before, actions, training=True)
    if Role.IDM in roles:
        scored[Role.IDM] = models.idm.log_prob(actions, before, after_seen or after, training=True)
    return scored


def std_over_ranks(values: Tensor, strategy: Strategy) -> Tensor:
    """Standard deviation, a scalar, of (N,) values and those of the other ranks together. Collective."""
    values = values.double()
    sums = torch.stack([values.new_tensor(float(len(values))), values.sum(), values.square().sum()])
    count, total, squares = strategy.reduce(sums, reduce_op="sum")
    return ((squares - total.square() / count) / (count - 1)).clamp(min=0).sqrt().float()
