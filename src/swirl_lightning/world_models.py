"""The forward world model and the inverse dynamics model, with the methods ``sample`` and ``log_prob``."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor
from transformers import PreTrainedModel

from swirl_lightning.adapters import Adapters
from swirl_lightning.backbones.base import Backbone
from swirl_lightning.engine.attention import install
from swirl_lightning.engine.completions import Completions
from swirl_lightning.engine.config import EngineConfig
from swirl_lightning.engine.drawing import SamplingConfig
from swirl_lightning.engine.engine import Engine
from swirl_lightning.engine.grammar import Grammar, TokenIds
from swirl_lightning.engine.noise import uniforms
from swirl_lightning.engine.norms import fuse_norms
from swirl_lightning.engine.samples import Samples
from swirl_lightning.engine.scoring import LogProbs
from swirl_lightning.engine.vocabulary import VocabularySlice
from swirl_lightning.prompts import PromptBuilder, PromptTemplates
from swirl_lightning.roles import ROLES, AdapterName, Role
from swirl_lightning.rollout_engines import RolloutEngine, SharedPrompts


class WorldModel:
    """World model of one role under one adapter. States and actions are content ids.

    The FWM is P(y | x, z): its condition beside x is the action. The IDM is Q(z | x, y): its condition is the
    state after. Prompts and grammars are the same in warm-up, rollout, reward and evaluation.

    Args:
        models: the base that both models share.
        role: role of this model.
        adapter: the adapter that is active in every call.
        grammar: of what is generated; None for the role's.
    """

    def __init__(self, models: WorldModels, role: Role, adapter: AdapterName, grammar: Grammar | None = None) -> None:
        self.models, self.role, self.adapter, self._grammar = models, role, adapter, grammar

    @property
    def reward_model(self) -> WorldModel:
        """The model that gives rewards while the other one is the policy; no copy: with separate weights, this one."""
        return WorldModel(self.models, self.role, self.models.adapters.reward(self.role))

    @property
    def reference(self) -> WorldModel:
        """Frozen copy to which the KL of this model is taken."""
        return WorldModel(self.models, self.role, self.models.adapters.reference(self.role))

    @property
    def grammar(self) -> Grammar:
        """Grammar of the generated state (FWM) or action (IDM)."""
        return self._grammar or self.models.grammars[self.role]

    def within(self, grammar: Grammar) -> WorldModel:
        """Return this model for states or actions of another grammar."""
        return WorldModel(self.models, self.role, self.adapter, grammar)

    def prompts(self, before: Sequence[TokenIds], condition: Sequence[TokenIds]) -> list[TokenIds]:
        """Build B prompts from B states before and B actions (FWM) or states after (IDM)."""
        build = self.models.prompts.fwm if self.role == Role.FWM else self.models.prompts.idm
        return [build(x, c) for x, c in zip(before, condition, strict=True)]

    def sample(
        self,
        before: Sequence[TokenIds],
        condition: Samples | Sequence[TokenIds],
        keys: Sequence[str],
        config: SamplingConfig,
        group: int = 1,
    ) -> Samples:
        """Draw ``group`` states or actions for each of B pairs, without gradient.

        Args:
            before: B states x.
            condition: B actions z (FWM) or B states y (IDM).
            keys: B names of random numbers: equal keys draw the same, whatever the batch and the rank.
            config: temperature and truncation.
            group: number G of samples for each pair.
        """
        prompts = self.prompts(before, _contents(condition))
        noise = uniforms(keys, group, self.grammar.max_length)
        drafts = [draft_of(self.grammar, x) for x in before] if self.role == Role.FWM else []
        completions = self.sample_ids(prompts, noise, config, drafts)
        return Samples(prompts, completions, [self.grammar.content(row) for row in completions.rows()])

    def log_prob(
        self,
        target: Samples | Sequence[TokenIds],
        before: Sequence[TokenIds],
        condition: Samples | Sequence[TokenIds],
        *,
        training: bool = False,
    ) -> LogProbs:
        """Compute log-probabilities of states (FWM) or actions (IDM) at temperature 1, per token.

        Where some of the arguments have B entries and others N = B * G, each of the B stands for its group of G.

        Args:
            target: states or actions. :class:`Samples` are scored as they were emitted, contents with their EOS.
            before: states x.
            condition: actions z (FWM) or states y (IDM).
            training: run in train mode and with gradient.
        """
        if isinstance(target, Samples):
            completions = target.completions.rows()
        else:
            completions = [self.grammar.complete(content) for content in target]
        given = (completions, before, _contents(condition))
        count, fewest = max(map(len, given)), min(map(len, given))
        rows, x, c = (_repeat(part, count) for part in given)
        return self.score_ids(self.prompts(x, c), rows, group_size=count // fewest, training=training)

    # ---- prompts and completions as ids ----------------------------------------------------------
    def sample_ids(
        self, prompts: Sequence[TokenIds], noise: Tensor, config: SamplingConfig, drafts: Sequence[TokenIds] = ()
    ) -> Completions:
        """Draw completions: see :meth:`swirl_lightning.rollout_engines.RolloutEngine.sample`."""
        models = self.models
        return models.rollout_engine.sample(models.adapters, self.adapter, self.grammar, prompts, noise, config, drafts)

    def score_ids(
        self,
        prompts: Sequence[TokenIds],
        completions: Sequence[TokenIds],
        *,
        group_size: int = 1,
        temperature: float = 1.0,
        training: bool = False,
        dropout: bool = True,
    ) -> LogProbs:
        """Compute log-probabilities of completions: see :meth:`swirl_lightning.engine.engine.Engine.score`.

        Args:
            prompts: of the completions, or of groups of ``group_size`` of them.
            completions: as ids, with their EOS.
            group_size: completions of a prompt.
            temperature: of the distribution.
            training: run in train mode and with gradient.
            dropout: with ``training``, with ``model.lora.dropout``.
        """
        gradient = nullcontext() if training else torch.no_grad()
        with self.models.adapters.use(self.adapter, training, dropout), gradient:
            return self.models.engine.score(
                self.grammar, prompts, completions, group_size=group_size, temperature=temperature
            )

    def cache_bytes(self) -> tuple[int, int]:
        """Measure the bytes of keys and values per token of a rollout, and count the layers."""
        with self.models.adapters.use(self.adapter):  # in eval mode: one that checkpoints its layers keeps no cache
            return self.models.engine.cache_bytes(self.grammar)


class WorldModels:
    """Both models on one base.

    Args:
        backbone: the family.
        model: the base with its adapters.
        adapters: the adapters.
        templates: wording of the prompts.
        max_tokens: budget of one forward pass; None takes a batch whole.
        max_cached_tokens: budget of sampling; None: ``max_tokens``.
        rollout_engine: samples; None for ours.

    Attributes:
        fwm: the forward world model under the adapter that trains.
        idm: the inverse dynamics model, likewise.
        prompts: builds the prompts of both.
    """

    def __init__(
        self,
        backbone: Backbone,
        model: PreTrainedModel,
        adapters: Adapters,
        templates: PromptTemplates,
        max_tokens: int | None = None,
        max_cached_tokens: int | None = None,
        rollout_engine: RolloutEngine | None = None,
    ) -> None:
        self.adapters = adapters
        self._backbone = backbone
        self.prompts = PromptBuilder(backbone, templates)
        self.fwm, self.idm = (WorldModel(self, role, adapters.policy(role)) for role in ROLES)
        shared = install(model)
        if not shared:
            rank_zero_info(
                f"{type(model).__name__}: every rollout runs with a prompt of its own, with more time and memory, "
                "as its attention cannot be replaced (a sliding window, compressed keys, or not transformers' sdpa)"
            )
        fuse_norms(model)
        graphs = backbone.cuda_graphs if shared and backbone.capturable else False
        speculative = backbone.speculative if shared else None
        config = EngineConfig(shared, graphs, speculative, max_tokens, max_cached_tokens)
        self.engine = Engine(backbone.trunk(model), backbone.head(model), config, adapters.recompute_contexts)
        self.rollout_engine = rollout_engine or SharedPrompts(self.engine)

    @property
    def grammars(self) -> dict[Role, Grammar]:
        """Grammar of each role; those of a text family change when a checkpoint brings its lengths."""
        return {Role.FWM: self._backbone.state_grammar, Role.IDM: self._backbone.action_grammar}

    def of(self, role: Role) -> WorldModel:
        """Return ``fwm`` or ``idm`` by its role."""
        return {Role.FWM: self.fwm, Role.IDM: self.idm}[role]

    def vocabulary(self, role: Role) -> VocabularySlice:
        """Return the head cut to the ids that ``role`` may generate, on the head's current device."""
        return self.engine.vocabulary(self.grammars[role])


def draft_of(grammar: Grammar, before: TokenIds) -> TokenIds:
    """Return the state before as a draft of the next one, without an EOS; empty where it is no state of the grammar."""
    if grammar.eos is not None:
        return before
    return grammar.complete(before) if len(before) == grammar.free_length else []


def _contents(given: Samples | Sequence[TokenIds]) -> Sequence[TokenIds]:
    return given.contents if isinstance(given, Samples) else given


def _repeat(rows: Sequence[TokenIds], count: int) -> list[TokenIds]:
    """Repeat each row equally often, to have ``count`` rows."""
    times, rest = divmod(count, max(1, len(rows)))
    if rest:
        raise ValueError(f"{len(rows)} rows cannot stand for {count}: the number of one must divide the other")
    return [row for row in rows for _ in range(times)]
