"""Workloads of the measurements: two cases, their base, their pairs, and the SWIRL module on them."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    GemmaConfig,
    GemmaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from swirl_lightning import SWIRL, AdapterConfig, GRPOConfig, PromptTemplates, SamplingConfig, Transition
from swirl_lightning.backbones.base import Backbone
from swirl_lightning.backbones.loading import load_base
from swirl_lightning.data import TransitionDataModule
from swirl_lightning.engine.grammar import Grammar, TokenIds
from swirl_lightning.schedule import OptimConfig, PhaseOptimConfig
from swirl_lightning.transition import State

SPECIALS = 3
"""Ids 0, 1, 2 are padding, EOS and BOS; nothing generates them, so that every method generates equally much."""


@dataclass(frozen=True)
class Case:
    """Workload; lengths in tokens.

    Attributes:
        family: ``gemma`` or ``qwen2``: the class in transformers.
        hidden: width of the model.
        intermediate: width of its MLP.
        layers: number of layers.
        heads: attention heads, as many for keys and values.
        vocabulary: number of ids.
        codes: number of image codes, which are the last ids; 0 for a world of text.
        prompt: the FWM's prompt.
        completion: a next state, y.
        action: an action, z.
        frame: words of each prompt's template.
        pairs: transitions in the batch.
        group_size: G of both phases.
        rank: of the LoRA adapters on all linear layers.
        beta: weight of the KL.
        dtype: of computation and of the weights that are not in 4-bit.
        width_of_heads: of each; 0 for hidden / heads.
    """

    family: str
    hidden: int
    intermediate: int
    layers: int
    heads: int
    vocabulary: int
    codes: int
    prompt: int
    completion: int
    action: int
    frame: int
    pairs: int
    group_size: int = 8
    rank: int = 8
    beta: float = 0.1
    dtype: str = "float32"
    width_of_heads: int = 0

    @property
    def head_dim(self) -> int:
        """Width of each head."""
        return self.width_of_heads or self.hidden // self.heads

    @property
    def before(self) -> int:
        """Number of tokens of x."""
        return self.prompt - self.action - self.frame

    @property
    def idm_prompt(self) -> int:
        """Number of tokens of the IDM's prompt: x, y and the template."""
        return self.before + self.completion + self.frame


CASES = {
    "image": Case("gemma", 512, 2048, 8, 8, 264_192, 8192, 300, 256, 16, 28, 1),
    "text": Case("qwen2", 512, 1536, 8, 8, 32_000, 0, 256, 128, 16, 8, 2),
}


def small(case: Case) -> Case:
    """Shrink the workload for a test."""
    codes = 64 if case.codes else 0
    return replace(
        case,
        hidden=64,
        intermediate=128,
        layers=2,
        heads=2,
        vocabulary=512 + codes,
        codes=codes,
        prompt=36,
        completion=24,
        action=8,
        frame=4,
        group_size=4,
    )


# ---- base ----------------------------------------------------------------------------------------
def build_base(case: Case, folder: Path) -> None:
    """Write random weights of the family, in float32, as a checkpoint."""
    torch.manual_seed(0)
    shape: dict[str, Any] = {
        "vocab_size": case.vocabulary,
        "hidden_size": case.hidden,
        "intermediate_size": case.intermediate,
        "num_hidden_layers": case.layers,
        "num_attention_heads": case.heads,
        "num_key_value_heads": case.heads,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "bos_token_id": 2,
    }
    model: PreTrainedModel
    if case.family == "gemma":
        model = GemmaForCausalLM(GemmaConfig(**shape, head_dim=case.head_dim))
    else:
        model = Qwen2ForCausalLM(Qwen2Config(**shape))
    model.save_pretrained(folder)


class Ids(Backbone):
    """Causal language model whose states and actions are written as ids: ``"17 4 256"``.

    Lengths are fixed and the EOS is out, so that every method generates the same number of tokens.
    """

    def __init__(self, case: Case, folder: Path) -> None:
        super().__init__(str(folder), dtype=case.dtype)
        self.case = case

    def load_model(self) -> PreTrainedModel:
        """Load the base in NF4 and read all of it: weights still on disk would count as memory of a step."""
        model = load_base(self, AutoModelForCausalLM)
        for parameter in model.parameters():
            parameter.sum()
        return model

    def encode_text(self, text: str) -> TokenIds:
        """Encode numbers as ids."""
        return [int(word) for word in text.split()]

    def decode_text(self, ids: TokenIds) -> str:
        """Decode ids to numbers in words."""
        return " ".join(map(str, ids))

    def encode_states(self, states: Sequence[State], device: torch.device) -> list[TokenIds]:
        """Encode each state as its numbers."""
        return [self.encode_text(str(state)) for state in states]

    def decode_states(self, contents: Sequence[TokenIds], device: torch.device) -> list[State]:
        """Decode each state to numbers in words."""
        return [self.decode_text(ids) for ids in contents]

    @cached_property
    def state_grammar(self) -> Grammar:
        """Grammar of image codes, or of all text."""
        text = self.case.vocabulary - self.case.codes
        return Grammar(tuple(range(text if self.case.codes else SPECIALS, self.case.vocabulary)), self.case.completion)

    @cached_property
    def action_grammar(self) -> Grammar:
        """Grammar of all text."""
        return Grammar(tuple(range(SPECIALS, self.case.vocabulary - self.case.codes)), self.case.action)


# ---- pairs ---------------------------------------------------------------------------------------
class Pairs(TransitionDataModule):
    """Random state-only pairs of the case's lengths: one batch."""

    def __init__(self, case: Case) -> None:
        super().__init__(batch_size=case.pairs)
        self.case = case

    def load_split(self, split: str) -> list[Transition]:
        """Make ``case.pairs`` transitions, the same at every call."""
        case, draw = self.case, random.Random(0)
        first = case.vocabulary - case.codes if case.codes else SPECIALS

        def state(length: int) -> str:
            return " ".join(str(draw.randrange(first, case.vocabulary)) for _ in range(length))

        return [Transition(state(case.before), state(case.completion), id=str(n)) for n in range(case.pairs)]


# ---- module --------------------------------------------------------------------------------------
def templates(case: Case) -> PromptTemplates:
    """Make templates of ``case.frame`` words."""
    frame = " ".join([str(SPECIALS)] * case.frame)
    return PromptTemplates("{before} " + frame + " {action}", "{before} " + frame + " {after}")


def randomize(parameters: Iterable[nn.Parameter]) -> None:
    """Give adapters random weights that differ from one another, so that no term of the loss is zero."""
    generator = torch.Generator().manual_seed(1)
    for parameter in parameters:
        parameter.data.copy_(0.02 * torch.randn(parameter.shape, generator=generator))


def build_module(case: Case, folder: Path) -> SWIRL:
    """Build SWIRL on the base in ``folder``, with random adapters."""
    constant = OptimConfig(1e-5, warmup=0, schedule="constant")
    module = SWIRL(
        Ids(case, folder),
        lora=AdapterConfig(r=case.rank, alpha=2 * case.rank),
        grpo=GRPOConfig(group_size=case.group_size, beta=case.beta),
        sampling=SamplingConfig(temperature=1.0, top_p=1.0),
        optim=PhaseOptimConfig(constant, constant, constant),
        templates=templates(case),
    )
    module.configure_model()
    randomize(p for name in module.adapters.names for p in module.adapters.parameters(name))
    return module
