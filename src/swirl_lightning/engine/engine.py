"""Sampling and scoring of completions on one base."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, noop_context_fn

from swirl_lightning.engine.budget import Group, TokenBudget
from swirl_lightning.engine.completions import Completions
from swirl_lightning.engine.config import EngineConfig
from swirl_lightning.engine.decoding import decode
from swirl_lightning.engine.drawing import SamplingConfig
from swirl_lightning.engine.grammar import Grammar, TokenIds
from swirl_lightning.engine.prefill import prefill
from swirl_lightning.engine.scoring import ContextFunction, LogProbs, score_groups, unique_rows
from swirl_lightning.engine.speculative import decode_speculatively
from swirl_lightning.engine.vocabulary import VocabularySlice


class Engine:
    """Trunk and head of one base, which :meth:`sample` and :meth:`score` completions.

    The caller chooses the adapter that is in use.

    Args:
        trunk: maps ids (B, T) to ``last_hidden_state`` (B, T, H).
        head: output layer (vocabulary, H), frozen.
        config: settings that are fixed for this base.
        recompute_contexts: ``context_fn`` of torch's checkpoint for the passes that :meth:`score` runs again.
    """

    def __init__(
        self,
        trunk: nn.Module,
        head: nn.Linear,
        config: EngineConfig | None = None,
        recompute_contexts: ContextFunction = noop_context_fn,
    ) -> None:
        self.trunk, self.head, self.config = trunk, head, config or EngineConfig()
        held, option = self.config.max_cached_tokens, "max_cached_tokens"
        self.scoring_budget = TokenBudget(self.config.max_tokens)
        self.sampling_budget = TokenBudget(held, option) if held else TokenBudget(self.config.max_tokens)
        self._recompute_contexts = recompute_contexts
        self._slices: list[tuple[Sequence[int], VocabularySlice]] = []
        self._sliced: int | None = None  # address of the weight that these are slices of

    @property
    def device(self) -> torch.device:
        """Device of the head, on which results are returned."""
        return self.head.weight.device

    def vocabulary(self, grammar: Grammar) -> VocabularySlice:
        """Return the head cut to the ids that ``grammar`` allows, made once while the head stays where it is."""
        if self._sliced != (place := self.head.weight.data_ptr()):
            self._slices, self._sliced = [], place  # those of a head that has moved would keep the old one
        for same in (operator.is_, operator.eq):  # to compare 200,000 ids at every call would take long
            for allowed, found in self._slices:
                if same(allowed, grammar.allowed):
                    return found
        self._slices.append((grammar.allowed, VocabularySlice(self.head, grammar.allowed)))
        return self._slices[-1][1]

    @torch.no_grad()
    def sample(
        self,
        grammar: Grammar,
        prompts: Sequence[TokenIds],
        noise: Tensor,
        sampling: SamplingConfig,
        drafts: Sequence[TokenIds] = (),
    ) -> Completions:
        """Draw G completions after each prompt, which is run once.

        Args:
            grammar: what a completion is.
            prompts: B prompts as ids, of any length.
            noise: (B * G, >= grammar.max_length) from :func:`swirl_lightning.engine.noise.uniforms`; G follows from
                its shape.
            sampling: temperature and truncation.
            drafts: B completions that are much like those to come; they change how fast these are drawn, not which.

        Returns:
            Completions (B * G, L); rows of one prompt are neighbours. One that reaches ``max_length`` before
            its EOS is left without: only what was sampled is scored.
        """
        size, vocabulary, noise = noise.shape[0] // len(prompts), self.vocabulary(grammar), noise.to(self.device)
        groups = [
            Group(tuple(range(n * size, n * size + size)), grammar.max_length, len(prompt))
            if self.config.shared_attention
            else Group(tuple(range(n * size, n * size + size)), len(prompt) + grammar.max_length)
            for n, prompt in enumerate(prompts)
        ]

        def run(batch: list[Group], several: bool) -> tuple[Tensor, Tensor]:
            rows = [row for group in batch for row in group.rows]
            members = [number for number, group in enumerate(batch) for _ in group.rows]
            numbers = [group.rows[0] // size for group in batch]
            given = self.trunk, vocabulary, grammar, [prompts[n] for n in numbers], members, noise[rows], sampling
            if self.config.speculates(noise.device):
                drawn = decode_speculatively(*given, [drafts[n] for n in numbers] if drafts else [[]] * len(numbers))
            else:
                drawn = decode(*given, self.config)
            return drawn.ids, drawn.mask

        with _current(self.device):
            done = self.sampling_budget.run(groups, run)
        return Completions(*self._in_order(done, range(len(noise))))

    def score(
        self,
        grammar: Grammar,
        prompts: Sequence[TokenIds],
        completions: Sequence[TokenIds],
        *,
        group_size: int = 1,
        temperature: float = 1.0,
    ) -> LogProbs:
        """Compute log-probabilities of completions after their prompts, under the constrained distribution.

        Rows n * G ... n * G + G - 1 form a group. What the prompts of a group have in common is run once for all
        members, forward and backward; equal rows are run once. If gradient is enabled, each of several micro-batches
        is run again in the backward pass, so that the activations of one of them exist at a time.

        Args:
            grammar: what a completion is; tokens that it forces have log-probability 0 and do not count.
            prompts: N prompts as ids, none empty.
            completions: N completions as ids, none empty, all within the grammar.
            group_size: G; 1 shares nothing.
            temperature: divides the logits.

        Returns:
            LogProbs (N, L), where L is the longest completion.

        Raises:
            ValueError: a prompt or a completion is empty, or an id lies outside the grammar.
        """
        config, vocabulary = self.config, self.vocabulary(grammar)
        groups, row_of = unique_rows(prompts, completions, group_size if config.shared_attention else 1)

        def run(batch: list[Group], several: bool) -> LogProbs:
            parts = [[(prompts[n], completions[n]) for n in group.rows] for group in batch]
            work = partial(
                score_groups, self.trunk, vocabulary, parts, temperature, config.shared_attention, grammar.forced
            )
            if several and torch.is_grad_enabled():
                # given a tensor, torch also keeps the random state of its device, of which dropout is drawn again
                again: LogProbs = checkpoint(
                    lambda _: work(), vocabulary.ids, use_reentrant=False, context_fn=self._recompute_contexts
                )
                return again
            return work()

        with _current(self.device):
            done = self.scoring_budget.run(groups, run)
        return LogProbs(*self._in_order(done, row_of))

    @torch.no_grad()
    def cache_bytes(self, grammar: Grammar) -> tuple[int, int]:
        """Measure the bytes of keys and values per token of a rollout, and count the layers."""
        length = 8
        layers: Any = prefill(self.trunk, [[grammar.allowed[0]] * length], self.device).cache.layers
        parts = [getattr(layer, name, None) for layer in layers for name in ("keys", "values")]
        return sum(part.nbytes for part in parts if isinstance(part, Tensor)) // length, max(1, len(layers))

    def _in_order(self, done: Iterable[tuple[list[int], tuple[Tensor, ...]]], rows: Iterable[int]) -> list[Tensor]:
        """Join the fields of micro-batches, (N, L) each: the given rows in the given order."""
        numbers, parts = zip(*done, strict=True)
        place = {row: n for n, row in enumerate(row for numbered in numbers for row in numbered)}
        index = torch.tensor([place[row] for row in rows], device=self.device)
        length = max(part[0].shape[1] for part in parts)
        return [
            torch.cat([nn.functional.pad(part, (0, length - part.shape[1])) for part in field])[index]
            for field in zip(*parts, strict=True)
        ]


def _current(device: torch.device) -> AbstractContextManager[Any]:
    """Make a GPU the current one: to empty its cache while it is not would free what is still in use.

    With ``expandable_segments``, that is (pytorch#196258).
    """
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
