"""Batches of rollouts with their rewards, and the data of their policy updates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from swirl_lightning.backbones.base import Backbone
from swirl_lightning.checkpoints.learned import plain
from swirl_lightning.engine.completions import Completions
from swirl_lightning.engine.drawing import SamplingConfig
from swirl_lightning.engine.grammar import TokenIds
from swirl_lightning.engine.padding import pad_right
from swirl_lightning.engine.samples import Samples
from swirl_lightning.roles import Role
from swirl_lightning.training.grpo import zero_variance_share
from swirl_lightning.transition import Transition
from swirl_lightning.world_models import WorldModel


def latent_actions(
    idm: WorldModel,
    transitions: Sequence[Transition],
    x: Sequence[TokenIds],
    y: Sequence[TokenIds],
    keys: Sequence[str],
    sampling: SamplingConfig,
    backbone: Backbone,
) -> Samples:
    """Give an action to each of B pairs: its counterfactual one, or where it has none a draw of the IDM."""
    given = {n: backbone.encode_action(t.counterfactual) for n, t in enumerate(transitions) if t.counterfactual}
    if not given:
        return idm.sample(x, y, keys, sampling)
    rows = {n: idm.grammar.complete(content) for n, content in given.items()}
    if bare := [n for n in range(len(transitions)) if n not in given]:
        drawn = _read_from(idm, bare, x, y, keys, sampling)
        given |= zip(bare, drawn.contents, strict=True)
        rows |= zip(bare, drawn.completions.rows(), strict=True)
    order = range(len(transitions))
    ids, mask = pad_right([rows[n] for n in order], idm.models.engine.device)
    return Samples(idm.prompts(x, y), Completions(ids, mask.bool()), [given[n] for n in order])


@dataclass(frozen=True)
class Rollouts:
    """Batch of B transitions with G rollouts each; row n belongs to transition n // G; N = B * G.

    Attributes:
        role: the policy: the FWM in Phase I (completions are next states), the IDM in Phase II (they are actions).
        transitions: the B pairs that were shown.
        actions: the actions in words: B in Phase I (one a group), sampled or counterfactual, N sampled ẑ in Phase II.
        contents: N content ids of what the policy sampled (no marks, no EOS).
        completions: the same as the policy emitted them, (N, L).
        rewards: (N,) float32, by default the mean log-probability per token under the frozen other model, in nats.
        advantages: (N,) float32.
        group_size: G.
    """

    role: Role
    transitions: list[Transition]
    actions: list[str]
    contents: list[TokenIds]
    completions: Completions
    rewards: Tensor
    advantages: Tensor
    group_size: int

    def summary(self, eos: int | None) -> dict[str, Tensor]:
        """Compute scalars for the log; ``eos`` ends a completion that is whole, None where all have one length."""
        groups = self.rewards.view(-1, self.group_size)
        lengths = self.completions.mask.sum(1, keepdim=True)
        ends = self.completions.ids.gather(1, lengths - 1)
        return {
            **({} if eos is None else {"truncated_share": (ends != eos).float().mean()}),
            "reward": groups.mean(),
            "reward_std": groups.std(1).mean(),
            "zero_variance_share": zero_variance_share(self.rewards, self.group_size),
            "completion_length": lengths.float().mean(),
        }


@dataclass
class Update:
    """Data of a policy update from a batch of rollouts, kept for the replays of ``num_iterations``.

    Attributes:
        prompts: N prompts, each repeated for its group.
        completions: N completions as sampled.
        advantages: (N,) float32.
        group_size: number G of rollouts of a prompt.
        pairs: B, the pairs that were shown.
        anchor: prompts and observed next states as completions (Phase I) of the pairs whose action is not
            counterfactual, or None.
        ref_log_probs: (N, L) under the reference, or None where β is 0.
        old_log_probs: of :meth:`teaching_rows` under the policy that sampled; set by the first update.
        rollout_log_probs: (N, L) under the engine that sampled, or None if that was the one that scores.
        temperature: of the rollouts; None for the policy's present one.
        extra: what a learner's loss needs besides, such as rewards; tensors, lists and numbers, for checkpoints.
    """

    prompts: list[TokenIds]
    completions: list[TokenIds]
    advantages: Tensor
    group_size: int
    pairs: int
    anchor: tuple[list[TokenIds], list[TokenIds]] | None = None
    ref_log_probs: Tensor | None = None
    old_log_probs: Tensor | None = None
    rollout_log_probs: Tensor | None = None
    temperature: float | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_samples(cls, samples: Samples, advantages: Tensor) -> Update:
        """Make the update of samples with (N,) advantages."""
        prompts = [prompt for prompt in samples.prompts for _ in range(samples.group_size)]
        drawn, size, pairs = samples.completions, samples.group_size, len(samples.prompts)
        return cls(prompts, drawn.rows(), advantages, size, pairs, rollout_log_probs=drawn.log_probs)

    def teaching_rows(self) -> list[int]:
        """Return the rows with a gradient: all if there is a KL, otherwise those of groups whose rewards differ.

        There is at least one group, so that there always is a graph to differentiate.
        """
        if self.ref_log_probs is not None:
            return list(range(len(self.prompts)))
        size = self.group_size
        groups = self.advantages.view(-1, size).ne(0).any(1).nonzero()[:, 0].tolist() or [0]
        return [row for group in groups for row in range(group * size, group * size + size)]

    def check(self) -> None:
        """Refuse what no checkpoint could hold: found there, it would be when a run is being stopped.

        Raises:
            ValueError: a subclass, or ``extra``, holds what could not be read again.
        """
        if type(self) is not Update:
            raise ValueError(f"{type(self).__name__}: a checkpoint holds the fields of Update alone: use extra")
        plain(tree_map_only(Tensor, lambda _: None, self.extra), "Update.extra")

    def state(self) -> dict[str, Any]:
        """Return lists and CPU tensors alone, for a checkpoint; errors as :meth:`check`."""
        self.check()
        values = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        moved = {k: v.cpu() if isinstance(v, Tensor) else v for k, v in values.items()}
        return moved | {"extra": plain(self.extra, "Update.extra")}

    @classmethod
    def of(cls, state: dict[str, Any], device: torch.device) -> Update:
        """Invert :meth:`state`, on a device."""
        moved: dict[str, Any] = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in state.items()}
        return cls(**moved | {"extra": tree_map_only(Tensor, lambda t: t.to(device), state.get("extra", {}))})


def name_actions(
    idm: WorldModel,
    transitions: Sequence[Transition],
    x: list[TokenIds],
    y: list[TokenIds],
    keys: Sequence[str],
    sampling: SamplingConfig,
) -> dict[int, TokenIds]:
    """Have the IDM name the actions of the pairs without one: number of the pair -> content ids."""
    bare = [n for n, row in enumerate(transitions) if row.action is None]
    if not bare:
        return {}
    return dict(zip(bare, _read_from(idm, bare, x, y, keys, sampling).contents, strict=True))


def _read_from(
    idm: WorldModel,
    chosen: Sequence[int],
    x: Sequence[TokenIds],
    y: Sequence[TokenIds],
    keys: Sequence[str],
    sampling: SamplingConfig,
) -> Samples:
    """Draw an action from the IDM for each of the pairs with these numbers."""
    return idm.sample([x[n] for n in chosen], [y[n] for n in chosen], [keys[n] for n in chosen], sampling)
