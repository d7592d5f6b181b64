"""The plain path: a straightforward implementation with transformers, the baseline of the tables.

Every rollout carries its whole prompt, sampling is ``generate`` with a logits processor, log-probabilities come
from full-vocabulary logits that are masked afterwards, and rewards are whole scoring passes of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from perf.common import Case, Pairs, build_module
from perf.meter import Meter
from swirl_lightning import SWIRL
from swirl_lightning.engine.grammar import TokenIds
from swirl_lightning.engine.scoring import LogProbs
from swirl_lightning.training.grpo import group_advantages, grpo_loss
from swirl_lightning.world_models import WorldModel

GAP = {"float32": 1e-4, "bfloat16": 0.1, "float16": 0.02}
"""Largest difference of log-probabilities from ours, in nats, by dtype of computation."""


class _Allowed(LogitsProcessor):
    """Logits processor that sets every id outside the grammar to -inf."""

    def __init__(self, allowed: Tensor) -> None:
        self.allowed = allowed

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return scores.masked_fill(~self.allowed, -torch.inf)


def generate(model: Any, prompts: Sequence[TokenIds], allowed: Tensor, length: int) -> list[TokenIds]:
    """Generate one completion of ``length`` tokens after each prompt; prompts are equally long.

    Args:
        model: the base with the adapter in use.
        prompts: N prompts.
        allowed: (V,) bool, the ids that may be drawn.
        length: of the completions.
    """
    ids = torch.tensor(prompts, device=allowed.device)  # (N, P)
    out = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        logits_processor=LogitsProcessorList([_Allowed(allowed)]),
        do_sample=True,
        temperature=1.0,
        top_p=1.0,
        top_k=0,
        max_new_tokens=length,
        pad_token_id=0,
    )
    completions: list[TokenIds] = out[:, ids.shape[1] :].tolist()
    return completions


def log_probs(
    model: Any, prompts: Sequence[TokenIds], completions: Sequence[TokenIds], allowed: Tensor | None = None
) -> Tensor:
    """Compute log-probabilities (N, L), float32, of completions after prompts, all rows equally long.

    Args:
        model: the base with the adapter in use.
        prompts: N prompts.
        completions: N completions.
        allowed: (V,) bool; None leaves the distribution over all ids.
    """
    targets = torch.tensor(completions, device=model.device)  # (N, L)
    ids = torch.cat([torch.tensor(prompts, device=model.device), targets], 1)
    logits = model(input_ids=ids, use_cache=False, logits_to_keep=targets.shape[1] + 1).logits[:, :-1].float()
    if allowed is not None:
        logits = logits.masked_fill(~allowed, -torch.inf)
    return logits.log_softmax(-1).gather(-1, targets[..., None])[..., 0]


class Plain:
    """Both phases on the base, adapters and prompts of a SWIRL module."""

    def __init__(self, case: Case, module: SWIRL, meter: Meter) -> None:
        self.case, self.module, self.meter = case, module, meter
        self.model = module.adapters.model.get_base_model()
        self.allowed: dict[str, Tensor] = {}
        for role, grammar in module.models.grammars.items():
            self.allowed[role] = torch.zeros(case.vocabulary, dtype=torch.bool, device=module.device)
            self.allowed[role][torch.tensor(grammar.allowed)] = True
        pairs = Pairs(case).load_split("state_only")
        self.before = [module.backbone.encode_text(str(t.before)) for t in pairs]
        self.after = [module.backbone.encode_text(str(t.after)) for t in pairs]

    def step(self, role: str, optimizer: torch.optim.Optimizer) -> None:
        """Run one step of the phase in which ``role`` is the policy."""
        adapters, prompts, size = self.module.adapters, self.module.prompts, self.case.group_size
        before, after = self._expand(self.before), self._expand(self.after)
        self.meter.start(role)
        if role == "fwm":
            with self.meter.part("latent action"):
                first = [prompts.idm(x, y) for x, y in zip(self.before, self.after, strict=True)]
                actions = self._expand(self._sample("idm", first))
            given = [prompts.fwm(x, z) for x, z in zip(before, actions, strict=True)]
        else:
            given = [prompts.idm(x, y) for x, y in zip(before, after, strict=True)]
        with self.meter.part("sample"):
            sampled = self._sample(role, given)
        with self.meter.part("reward"):
            if role == "fwm":
                judge, targets = "idm", actions
                asked = [prompts.idm(x, y) for x, y in zip(before, sampled, strict=True)]
            else:
                judge, targets = "fwm", after
                asked = [prompts.fwm(x, z) for x, z in zip(before, sampled, strict=True)]
            rewards = self._score(judge, adapters.reward(judge), asked, targets).mean(1)
        with self.meter.part("reference"):
            reference = self._score(role, adapters.reference(role), given, sampled)
        with adapters.use(adapters.policy(role), training=True):
            values = log_probs(self.model, given, sampled, self.allowed[role])
        mask = torch.ones_like(values, dtype=torch.bool)
        policy = LogProbs(values, torch.zeros_like(values), mask)
        advantages = group_advantages(rewards, size)
        loss, denominator, _ = grpo_loss(
            policy, values.detach(), reference, advantages, self.module.grpo, values.shape[1]
        )
        (loss / denominator).backward()
        optimizer.step()
        optimizer.zero_grad()
        self.meter.stop()

    def gap(self) -> float:
        """Measure the largest difference from SWIRL's log-probabilities, in nats: both roles, random rows, G = 2.

        Raises:
            ValueError: it is above :data:`GAP`.
        """
        models, adapters, generator = self.module.models, self.module.adapters, torch.Generator().manual_seed(2)
        worst = 0.0
        for role, prompt in (
            ("fwm", self.module.prompts.fwm(self.before[0], self.before[0][: self.case.action])),
            ("idm", self.module.prompts.idm(self.before[0], self.after[0])),
        ):
            grammar = models.grammars[role]
            drawn = torch.randint(len(grammar.allowed), (2, grammar.max_length), generator=generator)
            completions = [[grammar.allowed[place] for place in row] for row in drawn.tolist()]
            for adapter in (adapters.policy(role), adapters.reference(role)):
                ours = WorldModel(models, role, adapter).score_ids([prompt] * 2, completions, group_size=2).values
                plain = self._score(role, adapter, [prompt] * 2, completions)
                worst = max(worst, float((ours - plain).abs().max()))
        if worst > GAP[self.case.dtype]:
            raise ValueError(f"plain and ours differ by {worst:.2e} nats in a log-probability: do not time them")
        return worst

    def _expand(self, rows: list[TokenIds]) -> list[TokenIds]:
        return [row for row in rows for _ in range(self.case.group_size)]

    @torch.no_grad()
    def _sample(self, role: str, prompts: list[TokenIds]) -> list[TokenIds]:
        with self.module.adapters.use(self.module.adapters.policy(role)):
            return generate(self.model, prompts, self.allowed[role], self.module.models.grammars[role].max_length)

    @torch.no_grad()
    def _score(self, role: str, adapter: str, prompts: list[TokenIds], completions: list[TokenIds]) -> Tensor:
        with self.module.adapters.use(adapter):
            return log_probs(self.model, prompts, completions, self.allowed[role])


def run(case: Case, folder: Path, device: str, rounds: int, profiled: bool) -> tuple[Meter, dict[str, float]]:
    """Check that log-probabilities are ours, then run Phase I and Phase II ``rounds`` times."""
    module = build_module(case, folder).to(device)
    meter = Meter(device, profiled)
    plain = Plain(case, module, meter)
    checked = plain.gap()
    for _ in range(rounds):
        for role in ("fwm", "idm"):
            parameters = module.adapters.parameters(module.adapters.policy(role))
            plain.step(role, torch.optim.AdamW(parameters, lr=1e-5, weight_decay=0.0))
    return meter, {"log_prob_gap": checked}
