"""Output of a trunk, with what transformers' decoders do not return beside their hidden states."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class TrunkOutput(NamedTuple):
    """Output of a trunk whose positions are not the numbers of its tokens.

    Attributes:
        last_hidden_state: (B, T, H).
        rope_deltas: (B, 1) long, as in transformers' Qwen2-VL: the position of the next token minus the number of
            tokens before it. Needed of prompts alone; None: 0.
    """

    last_hidden_state: Tensor
    rope_deltas: Tensor | None = None
