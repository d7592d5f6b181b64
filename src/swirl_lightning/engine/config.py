"""Settings of the engine that are fixed for a base."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from swirl_lightning.engine.ranges import check_ranges

STEPS_OF_A_GRAPH = 16
"""Number of tokens from which a completion's steps are captured by default: a capture costs as much as a few."""


@dataclass(frozen=True)
class EngineConfig:
    """Settings of sampling and scoring on one base, whatever the grammar and the prompts.

    Attributes:
        shared_attention: completions attend to the one copy of their prompt, which needs
            :func:`swirl_lightning.engine.attention.install`; False runs every row whole: the plain path.
        cuda_graphs: decode steps read and write the same memory each time, and on CUDA devices are replayed as CUDA
            graphs; needs ``shared_attention``, and a trunk whose decode step can be captured. None: on CUDA devices,
            for completions of :data:`STEPS_OF_A_GRAPH` tokens, where ``shared_attention`` and ``speculative`` allow it.
        speculative: decode from drafts, and run once what rollouts of a prompt have in common
            (:mod:`swirl_lightning.engine.speculative`); needs ``shared_attention``, excludes ``cuda_graphs``. None: on
            CPUs, where these two allow it.
        max_tokens: tokens in one forward pass of scoring, with its backward pass: a prompt that a group shares counts
            once, and groups are padded to the largest. None takes a batch whole, for as long as memory lasts. A single
            row is run whatever its length.
        max_cached_tokens: tokens whose keys and values sampling holds at one time: each prompt once, and its rollouts
            at their longest. None: ``max_tokens``.

    Raises:
        ValueError: a number of tokens is below 1, ``cuda_graphs`` or ``speculative`` is set without
            ``shared_attention``, or both are set.
    """

    shared_attention: bool = True
    cuda_graphs: bool | None = None
    speculative: bool | None = None
    max_tokens: int | None = None
    max_cached_tokens: int | None = None

    def __post_init__(self) -> None:
        check_ranges(
            "engine", vars(self), **dict.fromkeys(("max_tokens", "max_cached_tokens"), "whole [1, inf) or null")
        )
        if self.cuda_graphs and not self.shared_attention:
            raise ValueError("cuda_graphs needs shared_attention: without it the cache grows by being copied")
        if self.speculative and (self.cuda_graphs or not self.shared_attention):
            raise ValueError("speculative needs shared_attention, and a pass has no fixed shape for cuda_graphs")

    def speculates(self, device: torch.device) -> bool:
        """Tell whether sampling on a device decodes from drafts."""
        able = self.shared_attention and not self.cuda_graphs
        return able and (device.type == "cpu" if self.speculative is None else self.speculative)

    def replays(self, device: torch.device, longest: int) -> bool:
        """Tell whether decode steps keep to the same memory on a device, and are replayed where it can do so."""
        if self.cuda_graphs is None:
            worth = device.type == "cuda" and longest >= STEPS_OF_A_GRAPH
            return worth and self.shared_attention and not self.speculative
        return self.cuda_graphs
