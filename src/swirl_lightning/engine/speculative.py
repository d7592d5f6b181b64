"""Speculative decoding of rollouts from a draft: a state that is much like the next one.

A token is a function of its logits and of its own random number. So what the rollout draws where the draft was run is
what it draws token by token, up to and including the first token that differs from the draft: nothing is approximated
(Leviathan et al., arXiv 2211.17192; a prompt as the draft: Saxena, "Prompt lookup decoding"). Rollouts of a prompt that
have drawn the same so far are one branch, and run once.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from swirl_lightning.engine.completions import Completions
from swirl_lightning.engine.drawing import SamplingConfig, draw_several
from swirl_lightning.engine.grammar import Grammar, TokenIds
from swirl_lightning.engine.kv_cache import BranchCache
from swirl_lightning.engine.packing import MASK_UNREAD
from swirl_lightning.engine.prefill import prefill
from swirl_lightning.engine.vocabulary import VocabularySlice, logits_per_chunk

FIRST_RATE, TRIAL_RATE, LARGEST_WINDOW = 0.91, 0.5, 64
"""Share of a draft's tokens that is taken to be right at first, and at most after passes without drafts; and the most
tokens of a branch in one pass."""
PASS_TOKENS = 512
"""Tokens of a pass with drafts at most: its activations and masks take memory, whatever the number of branches."""
TOKENS_OF_A_PASS = 64
"""What a pass costs beside its tokens, in tokens: between 10 (a base of billions of weights) and 100 (a tiny one)."""

_Array = NDArray[np.int64]


@dataclass
class _Branch:
    """Rollouts of one prompt that have drawn the same tokens.

    Attributes:
        prompt: index of the prompt.
        row: index of the prompt among those that the cache still has.
        place: index of the branch among those of its prompt in the cache.
        length: number of tokens that have been drawn.
        rollouts: their indices.
        pointer: index of the token of the prompt's draft that is expected next.
        draft: tokens that are run after the last one that was drawn.
    """

    prompt: int
    row: int
    place: int
    length: int
    rollouts: list[int]
    pointer: int = 0
    draft: TokenIds = field(default_factory=list)


def decode_speculatively(
    trunk: nn.Module,
    vocabulary: VocabularySlice,
    grammar: Grammar,
    prompts: list[TokenIds],
    members: list[int],
    noise: Tensor,
    sampling: SamplingConfig,
    drafts: list[TokenIds],
) -> Completions:
    """Sample N completions after B prompts, each of which is run once.

    Args:
        trunk: maps ids to ``last_hidden_state``.
        vocabulary: the head cut to ``grammar.allowed``.
        grammar: what a completion is.
        prompts: B prompts as ids.
        members: N indices of prompts; completion n follows prompt ``members[n]``.
        noise: (N, >= grammar.max_length) uniform numbers, on the device that runs.
        sampling: temperature and truncation.
        drafts: B completions that are much like those to be sampled, with forced tokens, and best without the EOS; an
            empty one helps nothing.

    Returns:
        Completions (N, L), as :func:`swirl_lightning.engine.decoding.decode` draws them.
    """
    known = [_Draft(ids, grammar) for ids in drafts]
    read = prefill(trunk, prompts, noise.device)
    cache = BranchCache(read.cache, read.mask if read.padded else None, grammar.max_length)
    tokens = np.zeros((len(members), grammar.max_length), dtype=np.int64)
    lengths = np.zeros(len(members), dtype=np.int64)
    branches = [_Branch(n, n, 0, 0, []) for n in range(len(prompts))]
    for rollout, member in enumerate(members):
        branches[member].rollouts.append(rollout)
    hidden, start, rate = read.hidden, read.start, FIRST_RATE
    while True:
        drawn = _draw(vocabulary, hidden, branches, noise, sampling)
        branches, right = _grow(branches, drawn, tokens, lengths, grammar)
        if not branches:
            break
        # without a draft, drafts come to be tried again after some passes
        rate = max(rate, min(rate + 0.01, TRIAL_RATE)) if right is None else (rate + right) / 2
        for branch in branches:
            _look_up(branch, known[branch.prompt], tokens[branch.rollouts[0], : branch.length], grammar)
        start = _arrange(branches, cache, start)
        window = _choose_window(branches, len(start) * cache.width, rate)
        for branch in branches:
            branch.draft = branch.draft[: window - 1]
        hidden = _run(trunk, branches, cache, tokens, start)
    if grammar.eos is None:
        lengths[:] = grammar.max_length
        for step, token in grammar.forced:
            tokens[:, step] = token
    used = int(lengths.max())
    mask = np.arange(used) < lengths[:, None]
    return Completions(*(torch.from_numpy(part).to(noise.device) for part in (tokens[:, :used], mask)))


def _draw(
    vocabulary: VocabularySlice, hidden: Tensor, branches: list[_Branch], noise: Tensor, sampling: SamplingConfig
) -> list[_Array]:
    """Draw for each of R branches the W tokens that (R, W, H) hidden states predict: (its rollouts, W) each."""
    device, (count, window, _) = noise.device, hidden.shape
    widest = max(len(branch.rollouts) for branch in branches)
    rows = torch.zeros(count, widest, dtype=torch.long)
    for n, branch in enumerate(branches):
        rows[n, : len(branch.rollouts)] = torch.tensor(branch.rollouts)
    first = torch.tensor([branch.length for branch in branches])
    steps = (first[:, None] + torch.arange(window)).clamp_(max=noise.shape[1] - 1)  # (R, W)
    uniform = noise[rows.to(device)[:, None], steps.to(device)[:, :, None]]  # (R, W, M)
    # logits of no more tokens exist at one time
    most = max(len(noise), logits_per_chunk(noise.device) // len(vocabulary))
    parts = zip(hidden.flatten(0, 1).split(most), uniform.flatten(0, 1).split(most), strict=True)
    index = torch.cat([draw_several(vocabulary.logits(part), numbers, sampling) for part, numbers in parts])
    ids = vocabulary.ids[index].view(count, window, widest).transpose(1, 2).cpu().numpy()
    return [ids[n, : len(branch.rollouts)] for n, branch in enumerate(branches)]


def _grow(
    branches: list[_Branch], drawn: list[_Array], tokens: _Array, lengths: _Array, grammar: Grammar
) -> tuple[list[_Branch], float | None]:
    """Add to ``tokens`` (N, longest) and ``lengths`` (N,) what was drawn, up to the first that is not the draft's.

    Returns:
        The branches that are not finished, each with the row and place of the one that it comes from, and the share of
        the drafts' tokens that were right, up to the first wrong one of each rollout; None: there was no draft.
    """
    forced = dict(grammar.forced)
    found: dict[tuple[int, int, int], _Branch] = {}
    right, wrong = 0, 0
    for number, (branch, own) in enumerate(zip(branches, drawn, strict=True)):
        own = own[:, : len(branch.draft) + 1]
        for step in range(own.shape[1]):
            own[:, step] = forced.get(branch.length + step, own[:, step])
        agreed = (own[:, :-1] == np.array(branch.draft, dtype=np.int64)).cumprod(1).sum(1)
        right, wrong = right + int(agreed.sum()), wrong + int((agreed < len(branch.draft)).sum())
        for rollout, ids, count in zip(branch.rollouts, own, agreed.tolist(), strict=True):
            taken = ids[: count + 1]
            ends = np.flatnonzero(taken == (-1 if grammar.eos is None else grammar.eos))
            taken = taken[: ends[0] + 1] if len(ends) else taken
            length = branch.length + len(taken)
            tokens[rollout, branch.length : length], lengths[rollout] = taken, length
            if len(ends) or length > grammar.last_free:  # what is left is forced, if anything
                continue
            key = number, length, int(taken[-1])
            if key not in found:
                found[key] = replace(branch, length=length, rollouts=[], pointer=branch.pointer + count)
            found[key].rollouts.append(rollout)
    return list(found.values()), right / (right + wrong) if right + wrong else None


class _Draft:
    """Draft of a prompt; ids that are above all that its grammar emits, or below 0, are none that a trunk must know."""

    def __init__(self, ids: TokenIds, grammar: Grammar) -> None:
        most = max(grammar.allowed[-1], *(token for _, token in grammar.forced), 0)
        self.ids = [token if 0 <= token <= most else grammar.allowed[0] for token in ids]

    @cached_property
    def _after(self) -> dict[tuple[int, ...], list[int]]:
        found: dict[tuple[int, ...], list[int]] = {}
        for n, pair in enumerate(pairwise(self.ids)):
            found.setdefault(pair, []).append(n + 2)
        return found

    def after(self, pair: Sequence[int], pointer: int) -> int:
        """Return the first place after two tokens behind a pointer, else in front of it, else the end."""
        found = self._after.get(tuple(pair))
        return found[bisect_right(found, pointer) % len(found)] if found else len(self.ids)


def _look_up(branch: _Branch, draft: _Draft, drawn: _Array, grammar: Grammar) -> None:
    """Find what a branch, which has drawn (length,) tokens, is expected to draw next, in the draft of its prompt."""
    if grammar.eos is None:
        branch.pointer = branch.length
    elif branch.pointer < len(draft.ids) and draft.ids[branch.pointer] == drawn[-1]:
        branch.pointer += 1
    else:
        branch.pointer = draft.after(drawn[-2:].tolist(), branch.pointer)
    left = grammar.max_length - branch.length - 1  # beside the one that the branch itself predicts
    branch.draft = draft.ids[branch.pointer : branch.pointer + min(LARGEST_WINDOW - 1, left)]


def _choose_window(branches: list[_Branch], places: int, rate: float) -> int:
    """Choose how many tokens each branch runs: all run as many as the longest draft, so drafts of a few do not pay."""
    lengths = np.array([len(branch.draft) for branch in branches])
    window = min(int(1.5 / (1 - min(rate, 0.99))), LARGEST_WINDOW, int(lengths.max()) + 1)
    window = min(window, max(1, PASS_TOKENS // places))
    choices = [window >> n for n in range(window.bit_length())]  # its halves, down to 1
    drawn = [len(branches) + int(np.minimum(lengths, w - 1).sum()) for w in choices]  # at best
    return max(zip(choices, drawn, strict=True), key=lambda c: c[1] / (TOKENS_OF_A_PASS + places * c[0]))[0]


def _arrange(branches: list[_Branch], cache: BranchCache, start: Tensor) -> Tensor:
    """Put branches side by side in the cache, prompt by prompt; returns ``start`` of the prompts that are left."""
    by_row: dict[int, list[_Branch]] = {}
    for branch in branches:
        by_row.setdefault(branch.row, []).append(branch)
    rows = sorted(by_row)
    parents = torch.zeros(len(rows), max(map(len, by_row.values())), dtype=torch.long)
    moved = parents.shape != (len(start), cache.width)
    for row, old in enumerate(rows):
        for place, branch in enumerate(by_row[old]):
            parents[row, place], moved = branch.place, moved or branch.place != place
            branch.row, branch.place = row, place
    if not moved:
        return start
    kept = torch.tensor(rows, device=start.device)
    cache.split(kept, parents.to(start.device))
    return start[kept]


def _run(trunk: nn.Module, branches: list[_Branch], cache: BranchCache, tokens: _Array, start: Tensor) -> Tensor:
    """Run the last token of each branch and its draft: (R, W, H) hidden states that predict the tokens after them."""
    window = max(len(branch.draft) for branch in branches) + 1
    ids = np.zeros((len(start), cache.width, window), dtype=np.int64)
    first = np.zeros((len(start), cache.width, 1), dtype=np.int64)
    for branch in branches:
        given = [tokens[branch.rollouts[0], branch.length - 1], *branch.draft]
        ids[branch.row, branch.place, : len(given)], first[branch.row, branch.place] = given, branch.length - 1
    numbers = np.minimum(first + np.arange(window), tokens.shape[1] - 1)
    positions = torch.from_numpy(numbers).to(start.device)
    cache.place(positions, int(numbers.max()) + 1)
    hidden: Tensor = trunk(
        input_ids=torch.from_numpy(ids).to(start.device).flatten(1),
        attention_mask=MASK_UNREAD,
        position_ids=start + positions.flatten(1),
        past_key_values=cache,
        use_cache=True,
    ).last_hidden_state
    rows, places = (torch.tensor([getattr(b, name) for b in branches]) for name in ("row", "place"))
    return hidden.view(len(start), cache.width, window, -1)[rows.to(start.device), places.to(start.device)]
