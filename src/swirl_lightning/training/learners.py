"""Learners from a batch of rollouts and their rewards: GRPO, or distillation of the best."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from lightning.pytorch.strategies import Strategy
from torch import Tensor

from swirl_lightning.engine.ranges import check_ranges
from swirl_lightning.engine.samples import Samples
from swirl_lightning.engine.scoring import token_mask
from swirl_lightning.training.grpo import GRPOConfig, group_advantages, grpo_loss, importance_weights, token_weights
from swirl_lightning.training.losses import Loss, score_update, std_over_ranks
from swirl_lightning.training.rollouts import Update
from swirl_lightning.world_models import WorldModel


@dataclass(frozen=True)
class Policy:
    """Model that a phase trains, with the settings of its rollouts.

    Attributes:
        model: what trains.
        grpo: sizes of groups, β, ε and weights of tokens.
        temperature: of the rollouts.
        strategy: reduces over ranks.
    """

    model: WorldModel
    grpo: GRPOConfig
    temperature: float
    strategy: Strategy

    @property
    def longest(self) -> int:
        """Number of tokens of the longest completion that count in losses."""
        return self.model.grammar.free_length


class Learner(ABC):
    """Learner, chosen by class path, that turns rollouts with rewards into a loss.

    What it learns is kept in checkpoints if it has a ``state_dict`` and a ``load_state_dict``; every rank goes on from
    that of the first one.

    Attributes:
        untrimmed: rollouts are drawn without top-p and top-k unless ``fwm_sampling`` or ``idm_sampling`` say
            otherwise, since the loss holds their probability under the policy that sampled them.
        trains_one: one rollout of a group is trained on at most, with a prompt of its own.
    """

    untrimmed = False
    trains_one = False

    @abstractmethod
    def advantages(self, policy: Policy, samples: Sequence[Samples], rewards: Sequence[Tensor]) -> list[Tensor]:
        """Compute the weight of each rollout of an optimiser step. Without gradient; collective.

        Args:
            policy: what samples.
            samples: of each micro-batch on this rank, N rollouts.
            rewards: of each micro-batch, theirs, (N,).

        Returns:
            For each micro-batch (N,) float32.
        """

    @abstractmethod
    def update(self, policy: Policy, samples: Samples, advantages: Tensor) -> Update:
        """Return what the policy update needs of a micro-batch's rollouts. Without gradient.

        Args:
            policy: what samples.
            samples: N rollouts.
            advantages: theirs, (N,).

        Returns:
            Lists and tensors, which a checkpoint within the optimiser step holds.
        """

    @abstractmethod
    def loss(self, policy: Policy, update: Update) -> Loss:
        """Compute the loss of a micro-batch, with gradient; called ``grpo.num_iterations`` times for each update.

        Not collective: ranks may have different numbers of rows.

        Args:
            policy: what trains.
            update: of :meth:`update`; what is set in it is there in the next call.

        Returns:
            The *sum* over the micro-batch and its share of the denominator, so that micro-batches and ranks add up to
            one batch. The sum has a graph even where there is nothing to learn, and the metrics the same names on every
            rank.
        """


class GRPO(Learner):
    """Group-relative policy optimisation with a clipped surrogate and a KL to the reference (paper, section 3)."""

    untrimmed = True

    def advantages(self, policy: Policy, samples: Sequence[Samples], rewards: Sequence[Tensor]) -> list[Tensor]:
        """Return the reward less the mean of its group, divided as ``advantage_scale`` says."""
        scale = policy.grpo.advantage_scale
        spread = std_over_ranks(torch.cat(list(rewards)), policy.strategy) if scale == "batch" else None
        return [
            group_advantages(earned, drawn.group_size, scale, spread)
            for drawn, earned in zip(samples, rewards, strict=True)
        ]

    def update(self, policy: Policy, samples: Samples, advantages: Tensor) -> Update:
        """Return all rollouts, with their log-probabilities under the reference if there is a KL."""
        update = Update.from_samples(samples, advantages)
        if policy.grpo.beta > 0:
            rows = range(len(update.prompts))
            update.ref_log_probs = score_update(policy.model.reference, update, rows, policy.temperature).values
        return update

    def loss(self, policy: Policy, update: Update) -> Loss:
        """Compute clipped surrogate + β KL (GRPO eq. 3); the first use of the rollouts sets ``old_log_probs``."""
        normalization, rows = policy.grpo.loss_normalization, update.teaching_rows()
        scored = score_update(policy.model, update, rows, policy.temperature, training=True, dropout=False)
        if update.old_log_probs is None:
            update.old_log_probs = scored.values.detach()  # on-policy: the ratio is 1, its gradient is not
        reference = None if update.ref_log_probs is None else update.ref_log_probs[rows]
        advantages = update.advantages[rows]
        importance = None
        if update.rollout_log_probs is not None:
            drawn = update.rollout_log_probs[rows, : update.old_log_probs.shape[1]]
            importance = importance_weights(update.old_log_probs, drawn)
        total, denominator, metrics = grpo_loss(
            scored, update.old_log_probs, reference, advantages, policy.grpo, policy.longest, importance
        )
        if left_out := sorted(set(range(len(update.prompts))) - set(rows)):  # they count as zeros
            given = [update.completions[n] for n in left_out]
            mask = token_mask(given, policy.model.grammar.forced, policy.model.models.engine.device)
            denominator = denominator + token_weights(mask, normalization, policy.longest)[1]
        tokens = int(scored.mask.sum())
        # one group stands in where none has a signal
        weight = tokens if reference is not None or bool(advantages.any()) else 0
        return Loss(total, denominator, len(update.prompts), normalization, metrics, tokens, weight=weight)


class BestOfN(Learner):
    """Supervised training on the likeliest rollout of each group that the reward accepts.

    The rollout that is trained on is the one that is likeliest under the policy, at temperature 1, among those whose
    reward is above ``threshold``. A group without one has a loss of 0. This is best-of-N distillation (expert
    iteration, RAFT; compare 2504.11343) with another choice: the reward decides which rollouts are acceptable, not
    which is best, since a model's reward is least reliable at its extremes.

    Args:
        threshold: in the reward's unit: with :class:`MeanLogProb`, nats per token.
    """

    trains_one = True

    def __init__(self, threshold: float = -0.1) -> None:
        self.threshold = threshold
        check_ranges("model.learner", vars(self), threshold="(-inf, inf)")

    def advantages(self, policy: Policy, samples: Sequence[Samples], rewards: Sequence[Tensor]) -> list[Tensor]:
        """Return 1 for the chosen rollout of each group, 0 for the others."""
        return [self._chosen(policy, drawn, earned) for drawn, earned in zip(samples, rewards, strict=True)]

    def _chosen(self, policy: Policy, samples: Samples, rewards: Tensor) -> Tensor:
        update = Update.from_samples(samples, rewards)
        scored = score_update(policy.model, update, range(len(update.prompts)), temperature=1.0)
        likelihood = scored.mean_per_token().masked_fill(rewards <= self.threshold, -torch.inf)
        groups = likelihood.view(-1, samples.group_size)
        chosen = torch.zeros_like(groups).scatter(1, groups.argmax(1, keepdim=True), 1.0)
        return (chosen * groups.isfinite()).flatten()

    def update(self, policy: Policy, samples: Samples, advantages: Tensor) -> Update:
        """Return the chosen rollouts alone; where none was chosen, the first one with weight 0."""
        chosen = advantages.nonzero()[:, 0].tolist() or [0]
        prompts = [samples.prompts[row // samples.group_size] for row in chosen]
        rows = samples.completions.rows()
        return Update(prompts, [rows[row] for row in chosen], advantages[chosen], 1, pairs=len(samples.prompts))

    def loss(self, policy: Policy, update: Update) -> Loss:
        """Compute -log-probability per token of the chosen rollouts, over the number of pairs."""
        rows = range(len(update.prompts))
        scored = score_update(policy.model, update, rows, temperature=1.0, training=True)
        losses = -update.advantages * scored.mean_per_token()
        pairs = losses.new_tensor(float(update.pairs))
        metrics = {"chosen_share": update.advantages.sum() / pairs}
        return Loss(losses.sum(), pairs, update.pairs, "sequence", metrics, int(scored.mask.sum()))
