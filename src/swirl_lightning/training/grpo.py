"""GRPO as pure functions: advantages, clipped surrogate, KL and weights of tokens."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from swirl_lightning.engine.ranges import check_ranges
from swirl_lightning.engine.scoring import LogProbs

STD_EPSILON = 1e-4
MOST_IMPORTANCE = 2.0
ADVANTAGE_SCALES = ("group", "batch", "none")
NORMALIZATIONS = ("token", "sequence", "constant")


@dataclass(frozen=True)
class GRPOConfig:
    """Hyperparameters of the policy update.

    Attributes:
        group_size: G, rollouts per prompt in Phase I, and in Phase II unless ``idm_group_size`` is set.
        idm_group_size: G in Phase II.
        beta: β, weight of the KL to the reference. (The ELBO has 1, but on sums; here rewards and KL are means per
            token, and advantages are scaled, so β is a free weight.)
        epsilon: ε of the clipped surrogate.
        epsilon_high: upper ε if it differs (DAPO); None means ``epsilon``.
        advantage_scale: ``group`` divides by the group's standard deviation; ``batch`` by that of all rewards of the
            optimiser step, over its micro-batches and ranks, so that groups whose rewards hardly differ hardly count;
            ``none`` does not divide (Dr. GRPO).
        loss_normalization: ``token`` (over the global batch), ``sequence`` (mean of each sequence's mean)
            or ``constant`` (Dr. GRPO: by the longest possible length).
        num_iterations: policy updates per batch of rollouts.
    """

    group_size: int = 8
    idm_group_size: int | None = None
    beta: float = 0.1
    epsilon: float = 0.2
    epsilon_high: float | None = None
    advantage_scale: str = "group"
    loss_normalization: str = "token"
    num_iterations: int = 1

    def __post_init__(self) -> None:
        check_ranges(
            "model.grpo",
            vars(self),
            group_size="whole [2, 100000]",  # rollouts are compared
            idm_group_size="whole [2, 100000] or null",
            beta="[0, inf)",
            epsilon="(0, inf)",
            epsilon_high="(0, inf) or null",
            num_iterations="whole [1, 1000]",
        )
        _choose("advantage_scale", self.advantage_scale, ADVANTAGE_SCALES)
        _choose("loss_normalization", self.loss_normalization, NORMALIZATIONS)


def group_advantages(rewards: Tensor, group_size: int, scale: str = "group", batch_std: Tensor | None = None) -> Tensor:
    """Compute A = (r - mean(r)) / (std(r) + 1e-4) within each group (GRPO; unbiased std, as in the paper and TRL).

    Args:
        rewards: (B * G,) float32, members of a group are neighbours.
        group_size: G.
        scale: the std that divides: of the ``group``, of the ``batch``, or ``none``.
        batch_std: std of the whole batch, if these are not all of its rewards; None computes it from these.

    Returns:
        (B * G,) float32.
    """
    groups = rewards.view(-1, group_size)  # (B, G)
    # from the first one: the mean of equal numbers may be rounded, and their std, nearly 0, would make much of that
    groups = groups - groups[:, :1]
    advantages = groups - groups.mean(1, keepdim=True)
    if scale == "group":
        advantages = advantages / (groups.std(1, keepdim=True) + STD_EPSILON)
    elif scale == "batch":
        advantages = advantages / ((rewards.std() if batch_std is None else batch_std) + STD_EPSILON)
    return advantages.flatten()


def zero_variance_share(rewards: Tensor, group_size: int) -> Tensor:
    """Compute the share of groups whose members have the same reward within 1e-6, and so no advantage.

    Args:
        rewards: (B * G,), members of a group are neighbours.
        group_size: G.

    Returns:
        A scalar between 0 and 1.
    """
    groups = rewards.view(-1, group_size)
    return ((groups.amax(1) - groups.amin(1)) < 1e-6).float().mean()


def clipped_surrogate(
    policy: Tensor, old: Tensor, advantages: Tensor, epsilon: float, epsilon_high: float | None = None
) -> tuple[Tensor, Tensor]:
    """Compute -min(ρA, clip(ρ, 1-ε, 1+ε_high)A) per token, ρ = π / π_old (PPO; GRPO eq. 3).

    Args:
        policy: (N, L) log-probabilities with gradient.
        old: (N, L) log-probabilities of the policy that sampled.
        advantages: (N,).
        epsilon: ε.
        epsilon_high: upper ε; None means ``epsilon``.

    Returns:
        loss (N, L), and (N, L) bool: True where the clip removes the gradient.
    """
    high = epsilon if epsilon_high is None else epsilon_high
    ratio = (policy - old).exp()
    advantages = advantages[:, None]
    clipped = ratio.clamp(1 - epsilon, 1 + high)
    held = ((ratio < 1 - epsilon) & (advantages < 0)) | ((ratio > 1 + high) & (advantages > 0))
    return -torch.minimum(ratio * advantages, clipped * advantages), held


def kl_k3(policy: Tensor, reference: Tensor) -> Tensor:
    """Compute exp(ref - π) - (ref - π) - 1 per token: the k3 estimator of KL(π, ref). (N, L) -> (N, L)."""
    difference = reference - policy
    return difference.exp() - difference - 1


def importance_weights(policy: Tensor, engine: Tensor) -> Tensor:
    """Compute min(π / μ, 2) per token: truncated importance sampling, where another engine μ drew a policy's tokens.

    An inference engine rounds differently from the model that trains, so its samples are off-policy (TIS of Yao et al.
    2025, "Your efficient RL framework secretly brings you off-policy RL training"; TRL's and verl's correction).

    Args:
        policy: (N, L) log-probabilities under the policy that sampled, by the engine that trains.
        engine: (N, L) of the same tokens, by the engine that sampled.
    """
    return (policy - engine).exp().clamp(max=MOST_IMPORTANCE)


def token_weights(mask: Tensor, normalization: str, max_length: int) -> tuple[Tensor, Tensor]:
    """Compute the weight of each token's loss, and the denominator of the sum.

    Args:
        mask: (N, L) bool.
        normalization: ``token``, ``sequence`` or ``constant``.
        max_length: longest completion the grammar allows (for ``constant``).

    Returns:
        weights (N, L) float32, 0 where masked out, and this batch's share of the denominator, a scalar:
        loss = sum(weights * token loss) / sum of denominators over micro-batches and ranks.

    Raises:
        ValueError: there is no such normalization.
    """
    weights = mask.float()
    if normalization == "token":
        return weights, weights.sum()
    rows = weights.new_tensor(float(len(mask)))
    if normalization == "sequence":
        return weights / weights.sum(1, keepdim=True).clamp(min=1), rows
    if normalization == "constant":
        return weights, rows * max_length
    raise ValueError(f"there is no normalization {normalization!r}: token, sequence or constant")


def grpo_loss(
    policy: LogProbs,
    old: Tensor,
    reference: Tensor | None,
    advantages: Tensor,
    config: GRPOConfig,
    max_length: int,
    importance: Tensor | None = None,
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Compute clipped surrogate + β KL over a batch of rollouts (GRPO eq. 3), summed and not yet divided.

    Args:
        policy: log-probabilities of the N completions under the policy, with gradient.
        old: (N, L) under the policy that sampled them.
        reference: (N, L) under the reference, or None for no KL.
        advantages: (N,).
        config: β, ε and weights of tokens.
        max_length: longest completion the grammar allows.
        importance: (N, L) weights of the surrogate, where another engine sampled; None for 1.

    Returns:
        the weighted sum of token losses, its denominator (see :func:`token_weights`), and for the log the
        token means of clip share, entropy, KL and importance.
    """
    loss, held = clipped_surrogate(policy.values, old, advantages, config.epsilon, config.epsilon_high)
    per_token = {"clip_share": held.float(), "entropy": policy.entropy}
    if importance is not None:
        loss, per_token["importance"] = loss * importance, importance
    if reference is not None:
        kl = kl_k3(policy.values, reference)
        loss, per_token["kl"] = loss + config.beta * kl, kl.detach()
    weights, denominator = token_weights(policy.mask, config.loss_normalization, max_length)
    total = (weights * loss).sum()
    metrics = {name: (value * policy.mask).sum() / policy.mask.sum() for name, value in per_token.items()}
    return total, denominator, metrics


def _choose(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {list(choices)}, got {value!r}")
