"""Grammars: the token sequences that may be generated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

TokenIds = list[int]


@dataclass(frozen=True)
class Grammar:
    """Set of token sequences that are a state, or an action: the support of the constrained policy.

    Attributes:
        allowed: sorted token ids that may be sampled, including ``eos`` where there is one.
        max_length: number of tokens at most; exactly this many where ``eos`` is None.
        eos: the id that ends a completion and belongs to it, or None for a fixed length.
        forced: (position, id) of tokens that stand at fixed positions whatever is sampled, for example at
            the end of a row of image codes; sorted by position, for grammars of a fixed length. Their
            probability is 1: they are emitted, not sampled, and count in no log-probability and no mean.
    """

    allowed: tuple[int, ...]
    max_length: int
    eos: int | None = None
    forced: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        if list(self.allowed) != sorted(set(self.allowed)) or not self.allowed:
            raise ValueError("Grammar.allowed must be sorted, without repeats and not empty")
        if self.eos is not None and self.eos not in self.allowed:
            raise ValueError(f"Grammar.eos {self.eos} is not among the allowed ids")
        forced: Any = self.forced
        if isinstance(forced, Mapping):
            raise ValueError(
                "Grammar.forced needs (position, id) pairs, got a dict: give tuple(sorted(forced.items()))"
            )
        if not isinstance(forced, Sequence) or not all(isinstance(p, Sequence) and len(p) == 2 for p in forced):
            raise ValueError(f"Grammar.forced needs (position, id) pairs, got {forced!r}")
        places = [place for place, _ in self.forced]
        if places != sorted(set(places)) or any(not 0 <= place < self.max_length for place in places):
            raise ValueError("Grammar.forced must be sorted by position, without repeats and within max_length")
        if self.forced and (self.eos is not None or len(places) == self.max_length):
            raise ValueError("Grammar.forced needs a fixed length (no eos) and leaves at least one token free")

    @cached_property
    def content_ids(self) -> tuple[int, ...]:
        """Ids that a content may hold: all that are allowed but the EOS."""
        return self.allowed if self.eos is None else tuple(token for token in self.allowed if token != self.eos)

    @cached_property
    def last_free(self) -> int:
        """Position of the last token that is sampled, not forced."""
        forced = dict(self.forced)
        return max(step for step in range(self.max_length) if step not in forced)

    @property
    def free_length(self) -> int:
        """Number of sampled, not forced, tokens of the longest completion."""
        return self.max_length - len(self.forced)

    def complete(self, content: TokenIds) -> TokenIds:
        """Return the completion of ``content``: with its EOS or forced tokens, cut to ``max_length``.

        Raises:
            ValueError: the length is fixed, and ``content`` has another one.
        """
        if self.eos is not None:
            return [*list(content)[: self.max_length - 1], self.eos]
        if len(content) != self.free_length:
            raise ValueError(f"a state of {self.free_length} tokens is needed, got {len(content)}")
        completion = list(content)
        for place, token in self.forced:
            completion.insert(place, token)
        return completion

    def content(self, completion: TokenIds) -> TokenIds:
        """Invert :meth:`complete`: return the tokens before the EOS, without the forced ones."""
        if self.eos is not None and self.eos in completion:
            return completion[: completion.index(self.eos)]
        forced = {place for place, _ in self.forced}
        return [token for place, token in enumerate(completion) if place not in forced]
