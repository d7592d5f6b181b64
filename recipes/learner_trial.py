"""Rewards and learners to try Phase I with: rows of ``recipes/studies/minigrid_learners.yaml``.

What pays on two worlds moves into the package, and the rest goes, with its numbers in the notes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from difflib import SequenceMatcher
from itertools import chain

import torch
from torch import Tensor

from swirl_lightning.data.batch import places
from swirl_lightning.engine.grammar import TokenIds
from swirl_lightning.engine.samples import Samples
from swirl_lightning.engine.scoring import LogProbs
from swirl_lightning.module import SWIRL
from swirl_lightning.roles import Role
from swirl_lightning.training.grpo import grpo_loss, token_weights
from swirl_lightning.training.learners import GRPO, BestOfN, Policy
from swirl_lightning.training.losses import Loss, score_update
from swirl_lightning.training.rewards import Reward, Scored
from swirl_lightning.training.rollouts import Update
from swirl_lightning.transition import Transition

Key = tuple[tuple[int, ...], ...]


class Accuracy(Reward):
    """1 where each token of the action has more than half of the IDM's probability, so that it is named; else 0."""

    def __call__(self, scored: Scored) -> Tensor:
        """Return zeros and ones, (N,) float32."""
        log_probs = scored.log_probs
        named = (log_probs.values.exp() > 0.5) | ~log_probs.mask
        return named.all(1).float()


class Deviating(GRPO):
    """GRPO on the groups alone whose rewards deviate by more than ``least``, in the reward's unit."""

    def __init__(self, least: float = 0.1) -> None:
        self.least = least

    def advantages(self, policy: Policy, samples: Sequence[Samples], rewards: Sequence[Tensor]) -> list[Tensor]:
        """Return GRPO's, 0 in the other groups."""
        found = super().advantages(policy, samples, rewards)
        kept = []
        for drawn, earned, own in zip(samples, rewards, found, strict=True):
            deviates = earned.view(-1, drawn.group_size).std(1) > self.least
            kept.append(own * deviates.repeat_interleave(drawn.group_size))
        return kept


class KLInReward(GRPO):
    """GRPO with k1, log π - log ref, a token, times β in the reward, and no KL in the loss (set ``grpo.beta`` to 0)."""

    def __init__(self, beta: float = 1.0) -> None:
        self.beta = beta

    def advantages(self, policy: Policy, samples: Sequence[Samples], rewards: Sequence[Tensor]) -> list[Tensor]:
        """Return those of the reward less the KL."""
        punished = []
        for drawn, earned in zip(samples, rewards, strict=True):
            update = Update.from_samples(drawn, earned)
            rows = range(len(update.prompts))
            own, reference = (
                score_update(m, update, rows, policy.temperature) for m in (policy.model, policy.model.reference)
            )
            punished.append(earned - self.beta * (own.mean_per_token() - reference.mean_per_token()))
        return super().advantages(policy, samples, punished)


class KLAsK2(GRPO):
    """GRPO with k2, half the square of log π - log ref, in the loss in place of k3 (set ``grpo.beta`` to 0)."""

    def __init__(self, beta: float = 0.1) -> None:
        self.beta = beta

    def update(self, policy: Policy, samples: Samples, advantages: Tensor) -> Update:
        """Return all rollouts, with their log-probabilities under the reference."""
        update = super().update(policy, samples, advantages)
        rows = range(len(update.prompts))
        update.reference = score_update(policy.model.reference, update, rows, policy.temperature).values
        return update

    def loss(self, policy: Policy, update: Update) -> Loss:
        """Compute clipped surrogate + β k2."""
        rows = range(len(update.prompts))
        assert update.reference is not None
        loss = super().loss(policy, replace(update))  # β is 0
        scored = score_update(policy.model, update, rows, policy.temperature, training=True)
        weights, _ = token_weights(scored.mask, policy.grpo.loss_normalization, policy.longest)
        loss.total = loss.total + self.beta * (weights * 0.5 * (scored.values - update.reference).square()).sum()
        return loss


class Contrast(GRPO):
    """GRPO whose tokens count by how much the action changes their log-probability: half evenly, half in proportion."""

    def __init__(self) -> None:
        self.others: dict[Key, list[TokenIds]] = {}

    def update(self, policy: Policy, samples: Samples, advantages: Tensor) -> Update:
        """Return all rollouts, with the weights of their tokens as ``sampled``."""
        update = super().update(policy, samples, advantages)
        other = self.others.pop(_key(samples))
        prompts = [prompt for prompt in other for _ in range(samples.group_size)]
        scored = score_update(policy.model, update, range(len(prompts)), policy.temperature)
        without = policy.model.score_ids(
            prompts, update.completions, group_size=samples.group_size, temperature=policy.temperature
        )
        changed = (scored.values - without.values).abs()
        mean = changed.sum(1, keepdim=True) / scored.mask.sum(1, keepdim=True)
        update.sampled = 0.5 + 0.5 * changed / mean.clamp(min=1e-6)
        return update

    def loss(self, policy: Policy, update: Update) -> Loss:
        """Compute the clipped surrogate of all rollouts, of weighted tokens."""
        scored = score_update(policy.model, update, range(len(update.prompts)), policy.temperature, training=True)
        total, denominator, metrics = grpo_loss(
            scored, scored.values.detach(), None, update.advantages, policy.grpo, policy.longest, update.sampled
        )
        tokens, form = int(scored.mask.sum()), policy.grpo.loss_normalization
        return Loss(total, denominator, len(update.prompts), form, metrics, tokens, weight=tokens)


class Nearest(BestOfN):
    """Supervised training on the accepted rollout of each group that is nearest to x, the likeliest of several.

    The reward asks for what the action changes, and says nothing of what else a rollout changes. The distance is the
    number of tokens that are replaced, removed or added.
    """

    def __init__(self, threshold: float = -0.1) -> None:
        super().__init__(threshold)
        self.befores: dict[Key, list[TokenIds]] = {}

    def _chosen(self, policy: Policy, samples: Samples, rewards: Tensor) -> Tensor:
        befores = self.befores.pop(_key(samples))
        size = samples.group_size
        far = [_edits(befores[n // size], content) for n, content in enumerate(samples.contents)]
        distance = torch.tensor(far, device=rewards.device).float()
        distance = distance.masked_fill(rewards <= self.threshold, torch.inf).view(-1, size)
        nearest = (distance == distance.amin(1, keepdim=True)).flatten()
        return super()._chosen(policy, samples, rewards.masked_fill(~nearest, -torch.inf))


class TrialSWIRL(SWIRL):
    """SWIRL with what Phase I has to know: x for Nearest, another action for Contrast, ``candidates`` for the reward.

    With candidates the reward is log Q(z; x, ŷ) less the log of the sum over z and the candidates, of whole actions.
    """

    candidates = 0

    def phase_one(self, batches: Sequence[list[Transition]]) -> Iterator[tuple[Samples, Samples, LogProbs]]:
        """As in SWIRL; the other actions are those of the other pairs of the batch."""
        transitions = list(chain.from_iterable(batches))
        x, _ = self.encode_pairs(transitions)
        for part, (z, y_hat, judged) in zip(places(batches), super().phase_one(batches), strict=True):
            own = x[part]
            others = _others(z.contents, max(1, self.candidates))
            if isinstance(self.learner, Nearest):
                self.learner.befores[_key(y_hat)] = own
            if isinstance(self.learner, Contrast):
                prompts = self.models.of(Role.FWM).prompts(own, [found[0] for found in others])
                self.learner.others[_key(y_hat)] = prompts
            yield z, y_hat, self._normalised(own, z, y_hat, judged, others) if self.candidates else judged

    def _normalised(
        self, x: list[TokenIds], z: Samples, y_hat: Samples, judged: LogProbs, others: list[list[TokenIds]]
    ) -> LogProbs:
        group, count = y_hat.group_size, self.candidates
        befores = [x[n // group] for n in range(len(y_hat.contents)) for _ in range(count)]
        afters = [content for content in y_hat.contents for _ in range(count)]
        actions = [action for n in range(len(y_hat.contents)) for action in others[n // group]]
        idm = self.models.idm.frozen
        completions = [idm.grammar.complete(action) for action in actions]
        scored = idm.score_ids(idm.prompts(befores, afters), completions, group_size=count)
        sums = torch.cat([judged.values.sum(1, keepdim=True), scored.values.sum(1).view(-1, count)], 1)
        reward = sums[:, :1] - sums.logsumexp(1, keepdim=True)
        return LogProbs(reward, torch.zeros_like(reward), torch.ones_like(reward).bool())


class Candidates(TrialSWIRL):
    """With eight candidates."""

    candidates = 8


def _edits(before: TokenIds, after: TokenIds) -> int:
    codes = SequenceMatcher(None, before, after, autojunk=False).get_opcodes()
    return sum(max(b - a, d - c) for tag, a, b, c, d in codes if tag != "equal")


def _key(samples: Samples) -> Key:
    return tuple(tuple(prompt) for prompt in samples.prompts)


def _others(actions: Sequence[TokenIds], count: int) -> list[list[TokenIds]]:
    """For each action the next ``count`` of the batch that differ from it, in turn where there are fewer."""
    found = []
    for n, action in enumerate(actions):
        turned = dict.fromkeys(tuple(other) for other in (*actions[n + 1 :], *actions[:n]) if other != action)
        different = [list(other) for other in turned] or [list(action)]
        found.append([different[k % len(different)] for k in range(count)])
    return found
