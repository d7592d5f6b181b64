"""The two models as policies and as judges: which adapter, prompt and grammar a role uses."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from swirl_lightning.adapters import Adapters
from swirl_lightning.backbones.base import Backbone
from swirl_lightning.engine.attention import install
from swirl_lightning.engine.budget import TokenBudget
from swirl_lightning.engine.completions import Completions
from swirl_lightning.engine.drawing import SamplingConfig
from swirl_lightning.engine.grammar import Grammar, TokenIds
from swirl_lightning.engine.sampling import sample
from swirl_lightning.engine.scoring import LogProbs, score, token_mask
from swirl_lightning.engine.vocabulary import VocabularySlice

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class WorldModels:
    """Sampling and scoring under any adapter of one base; ``role`` says what is generated.

    ``fwm`` generates states, ``idm`` generates actions. Everything here is ids, masks and
    log-probabilities: no image and no text.

    Args:
        backbone: the family.
        model: the base with its adapters.
        adapters: the adapters.
        max_tokens: budget of one forward pass; None takes a batch whole.
    """

    def __init__(
        self, backbone: Backbone, model: PreTrainedModel, adapters: Adapters, max_tokens: int | None = None
    ) -> None:
        self.adapters = adapters
        self.grammars: dict[str, Grammar] = {"fwm": backbone.state_grammar, "idm": backbone.action_grammar}
        self._trunk = backbone.trunk(model)
        self._head = backbone.head(model)
        self._budget = TokenBudget(max_tokens)
        self.shared_attention = install(model)
        # a trunk that looks pictures up by id cannot be captured
        self._cuda_graphs = backbone.cuda_graphs and self.shared_attention and backbone.ids_suffice
        self._slices: dict[tuple[str, torch.device], VocabularySlice] = {}

    def vocabulary(self, role: str) -> VocabularySlice:
        """The head cut to what ``role`` may generate, on the head's device of now."""
        key = (role, self._head.weight.device)
        if key not in self._slices:
            self._slices[key] = VocabularySlice(self._head, self.grammars[role].allowed)
        return self._slices[key]

    def sample(
        self, role: str, adapter: str, prompts: Sequence[TokenIds], noise: Tensor, config: SamplingConfig
    ) -> Completions:
        """Rollouts of ``role`` by ``adapter``: see :func:`swirl_lightning.engine.sampling.sample`."""
        with self.adapters.use(adapter), torch.no_grad(), self.adapters.merged(adapter):
            vocabulary, grammar = self.vocabulary(role), self.grammars[role]
            return sample(
                self._trunk,
                vocabulary,
                grammar,
                prompts,
                noise,
                config,
                self._budget,
                self.shared_attention,
                self._cuda_graphs,
            )

    def score(
        self,
        role: str,
        adapter: str,
        prompts: Sequence[TokenIds],
        completions: Sequence[TokenIds],
        *,
        group_size: int = 1,
        temperature: float = 1.0,
        training: bool = False,
    ) -> LogProbs:
        """Log-probabilities of ``role``'s completions under ``adapter``; gradient only if ``training``."""
        with self.adapters.use(adapter, training), nullcontext() if training else torch.no_grad():
            return score(
                self._trunk,
                self.vocabulary(role),
                prompts,
                completions,
                group_size=group_size,
                temperature=temperature,
                shared_attention=self.shared_attention,
                budget=self._budget,
                recompute_contexts=self.adapters.recompute_contexts,
                forced=self._forced(role),
            )

    def token_mask(self, role: str, completions: Sequence[TokenIds]) -> Tensor:
        """(N, L) bool: the tokens of completions that count in losses and means."""
        return token_mask(completions, self._forced(role), self._head.weight.device)

    def contents(self, role: str, completions: Completions) -> list[TokenIds]:
        """What the completions say, without the EOS."""
        return [self.grammars[role].content(row) for row in completions.rows()]

    def _forced(self, role: str) -> list[int]:
        return [place for place, _ in self.grammars[role].forced]
