"""Engines that sample rollouts: ours, and transformers' ``generate`` as another one behind the same method.

Whatever samples, log-probabilities that train are ours. Where an engine says how likely its own tokens were to it, the
learner weights them (:func:`swirl_lightning.training.grpo.importance_weights`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedModel

from swirl_lightning.adapters import Adapters
from swirl_lightning.engine.completions import Completions
from swirl_lightning.engine.drawing import SamplingConfig, draw
from swirl_lightning.engine.engine import Engine
from swirl_lightning.engine.grammar import Grammar, TokenIds
from swirl_lightning.engine.padding import pad_left
from swirl_lightning.engine.ranges import check_ranges
from swirl_lightning.roles import AdapterName


class RolloutEngine(ABC):
    """Engine that samples, chosen by class path: ``model.rollout_engine``."""

    @abstractmethod
    def sample(
        self,
        adapters: Adapters,
        name: AdapterName,
        grammar: Grammar,
        prompts: Sequence[TokenIds],
        noise: Tensor,
        sampling: SamplingConfig,
        drafts: Sequence[TokenIds] = (),
    ) -> Completions:
        """Draw G completions after each of B prompts. Without gradient.

        Args:
            adapters: on the base. Their weights change at every optimiser step of their phase, and some between phases:
                a copy elsewhere is out of date at the next call.
            name: of the adapter that samples.
            grammar: allowed ids, EOS, length, and the ids that it forces.
            prompts: B prompts as ids, of any length.
            noise: (B * G, >= grammar.max_length) uniform numbers in [0, 1), on the CPU: one a token, or whatever
                follows from them, such as a seed a row. Equal rows of it must draw equal completions after equal
                prompts, whatever else is in the call.
            sampling: temperature and truncation.
            drafts: B completions that are much like those to come, or none. An engine may run them ahead of its
                rollouts, or ignore them.

        Returns:
            Completions (B * G, L), on the head's device; rows of one prompt are neighbours. If the engine does not
            compute what ours does (another precision, other kernels), with ``log_probs``.
        """


class SharedPrompts(RolloutEngine):
    """Our own engine: a prompt is run and kept once for all of its rollouts, and the head is cut to the allowed ids.

    Args:
        engine: on the base.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def sample(
        self,
        adapters: Adapters,
        name: AdapterName,
        grammar: Grammar,
        prompts: Sequence[TokenIds],
        noise: Tensor,
        sampling: SamplingConfig,
        drafts: Sequence[TokenIds] = (),
    ) -> Completions:
        """Draw as :meth:`swirl_lightning.engine.engine.Engine.sample` does, with the adapter merged where it can be."""
        with adapters.use(name), torch.no_grad(), adapters.merged(name):
            return self._engine.sample(grammar, prompts, noise, sampling, drafts)


class Generate(RolloutEngine):
    """transformers' ``generate`` on the same base, whose logits choose from the same noise as ours.

    Slower: every rollout runs and keeps a prompt of its own, and the head is computed for all ids. It is the example of
    an engine of another library, and a second opinion on ours.

    Args:
        rows: rollouts that are generated at one time.

    Raises:
        ValueError: ``rows`` is below 1.
    """

    def __init__(self, rows: int = 64) -> None:
        self.rows = rows
        check_ranges("model.rollout_engine", vars(self), rows="whole [1, inf)")

    def sample(
        self,
        adapters: Adapters,
        name: AdapterName,
        grammar: Grammar,
        prompts: Sequence[TokenIds],
        noise: Tensor,
        sampling: SamplingConfig,
        drafts: Sequence[TokenIds] = (),
    ) -> Completions:
        """Draw by ``generate``, some rows at a time.

        Raises:
            ValueError: the family's ``forward`` is not what it is trained by: ids that stand for images, or logits of
                allowed ids that it masks.
        """
        model: Any = adapters.model.get_base_model()
        if max(map(max, prompts)) >= model.get_input_embeddings().weight.shape[0]:
            raise ValueError("rollout_engine Generate feeds ids alone: it cannot show images to a VLM")
        size = len(noise) // len(prompts)
        rows = [prompt for prompt in prompts for _ in range(size)]
        with adapters.use(name), torch.no_grad(), adapters.merged(name):
            done = [
                _generate(model, rows[start : start + self.rows], noise[start : start + self.rows], grammar, sampling)
                for start in range(0, len(rows), self.rows)
            ]
        length = max(part.ids.shape[1] for part in done)
        return Completions(
            *(
                torch.cat([nn.functional.pad(part, (0, length - part.shape[1])) for part in field])
                for field in zip(*done, strict=True)
            )
        )


def _generate(
    model: PreTrainedModel, prompts: list[TokenIds], noise: Tensor, grammar: Grammar, sampling: SamplingConfig
) -> Completions:
    ids, mask = pad_left(prompts, model.device)  # (N, P)
    drawing = _Drawing(grammar, noise.to(model.device), sampling, ids.shape[1])
    config = GenerationConfig(
        max_new_tokens=grammar.max_length, do_sample=False, eos_token_id=grammar.eos, pad_token_id=0, use_cache=True
    )
    # what a checkpoint's own file says (a penalty, other ends) would be added to ours
    own, model.generation_config = model.generation_config, config
    try:
        out = model.generate(  # type: ignore[operator]
            ids, attention_mask=mask, generation_config=config, logits_processor=LogitsProcessorList([drawing])
        )
    finally:
        model.generation_config = own
    tokens = out[:, ids.shape[1] :]  # (N, L)
    ended = torch.zeros_like(tokens) if grammar.eos is None else (tokens == grammar.eos).long()
    alive = (ended.cumsum(1) - ended) == 0  # the EOS belongs to the completion
    log_probs = torch.stack(drawing.log_probs, 1)
    return Completions(tokens * alive, alive, log_probs * alive)


class _Drawing(LogitsProcessor):
    """Choice of each token by our own drawing, so that greedy search finds it: all other logits become -inf.

    Attributes:
        log_probs: (N,) of each step, float32.
    """

    def __init__(self, grammar: Grammar, noise: Tensor, sampling: SamplingConfig, width: int) -> None:
        self._allowed = torch.tensor(grammar.allowed, device=noise.device)
        self._forced, self._noise, self._sampling, self._width = dict(grammar.forced), noise, sampling, width
        self.log_probs: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """(N, T) ids so far, (N, V) logits -> (N, V)."""
        step = input_ids.shape[1] - self._width
        if step in self._forced:
            token = torch.full_like(input_ids[:, 0], self._forced[step])
            self.log_probs.append(scores.new_zeros(len(scores), dtype=torch.float32))
        else:
            logits = scores[:, self._allowed].float()  # (N, allowed)
            if not self.log_probs and bool((logits <= torch.finfo(scores.dtype).min).all()):
                raise ValueError("rollout_engine Generate: this family's forward masks the ids that are to be sampled")
            index = draw(logits, self._noise[:, step], self._sampling)[:, None]
            values = (logits / (self._sampling.temperature or 1.0)).log_softmax(-1)
            self.log_probs.append(values.gather(1, index)[:, 0])
            token = self._allowed[index[:, 0]]
        return torch.full_like(scores, -torch.inf).scatter_(1, token[:, None], 0.0)
