"""Token log-probabilities of given completions, the same for reward, policy, old and reference."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from swirl_lightning.engine.budget import Group
from swirl_lightning.engine.grammar import TokenIds
from swirl_lightning.engine.packing import MASK_UNREAD, Packing
from swirl_lightning.engine.padding import pad_right, positions
from swirl_lightning.engine.vocabulary import VocabularySlice

ContextFunction = Callable[[], tuple[AbstractContextManager[None], AbstractContextManager[None]]]
Forced = Sequence[tuple[int, int]]
"""Position and id of the tokens that a grammar forces."""
Row = tuple[TokenIds, TokenIds]
"""A prompt and its completion."""


class LogProbs(NamedTuple):
    """Per-token log-probabilities of N completions, padded on the right.

    Attributes:
        values: (N, L) float32, nats; 0 where masked out. Carries gradient if it was enabled.
        entropy: (N, L) float32, nats, of the distribution of each token; carries no gradient, and is 0 unless
            gradient was enabled: rewards do not need it.
        mask: (N, L) bool; False on padding and on tokens that the grammar forces.
    """

    values: Tensor
    entropy: Tensor
    mask: Tensor

    def mean_per_token(self) -> Tensor:
        """Mean (N,) over the unmasked tokens of each row: the reward of the paper, and minus the SFT loss."""
        return self.values.sum(1) / self.mask.sum(1).clamp(min=1)


def token_mask(completions: Sequence[TokenIds], forced: Forced, device: torch.device) -> Tensor:
    """Mask (N, L) bool of the tokens that count: neither padding nor forced by the grammar."""
    return _without_forced(pad_right(completions, device)[1], forced)


def _without_forced(mask: Tensor, forced: Forced) -> Tensor:
    mask = mask.bool()
    mask[:, [place for place, _ in forced if place < mask.shape[1]]] = False
    return mask


def unique_rows(
    prompts: Sequence[TokenIds], completions: Sequence[TokenIds], group_size: int
) -> tuple[list[Group], list[int]]:
    """Form groups without repeated rows; returns them, and the index of the row that is run for each of the N rows."""
    groups: list[Group] = []
    row_of: list[int] = []
    for start in range(0, len(prompts), group_size):
        seen: dict[tuple[tuple[int, ...], tuple[int, ...]], int] = {}
        for n in range(start, start + group_size):
            if not prompts[n] or not completions[n]:
                raise ValueError("an empty prompt or completion cannot be scored")
            row_of.append(seen.setdefault((tuple(prompts[n]), tuple(completions[n])), n))
        # rows of one length side by side, which attention then takes at once
        rows = tuple(sorted(seen.values(), key=lambda n: len(prompts[n]) + len(completions[n])))
        shared = _common_prefix([(prompts[n], completions[n]) for n in rows]) if len(rows) > 1 else 0
        # the last token predicts nothing, and is not run
        groups.append(Group(rows, max(len(prompts[n]) + len(completions[n]) for n in rows) - 1 - shared, shared))
    return groups, row_of


def _common_prefix(rows: list[Row]) -> int:
    """Count the ids with which all prompts of a group begin; at least one id of each prompt is left out."""
    first, last = min(p for p, _ in rows), max(p for p, _ in rows)
    shared = 0
    for a, b in zip(first, last, strict=False):
        if a != b:
            break
        shared += 1
    return min(shared, *(len(p) - 1 for p, _ in rows))


def score_groups(
    trunk: nn.Module,
    vocabulary: VocabularySlice,
    groups: list[list[Row]],
    temperature: float,
    shared_attention: bool,
    forced: Forced,
) -> LogProbs:
    """Log-probabilities (N, L) of one micro-batch, group by group; the arguments are those of ``Engine.score``."""
    device = vocabulary.weight.device
    completions = [completion for rows in groups for _, completion in rows]
    hidden, first = (_packed if shared_attention else _expanded)(trunk, groups, device)
    targets, completion_mask = pad_right(completions, device)  # (N, L)
    completion_mask = _without_forced(completion_mask, forced)
    rows, columns = torch.tensor(first, device=device).T  # (N,) twice
    row, place = completion_mask.nonzero(as_tuple=True)  # (T,) twice: only completion tokens go through the head
    values, entropy = vocabulary.log_probs(
        hidden[rows[row], columns[row] + place], targets[row, place], temperature
    )  # (T,)
    blank = values.new_zeros(targets.shape)
    return LogProbs(blank.index_put((row, place), values), blank.index_put((row, place), entropy), completion_mask)


def _packed(trunk: nn.Module, groups: list[list[Row]], device: torch.device) -> tuple[Tensor, list[tuple[int, int]]]:
    """Run the trunk on packed groups: the common prefix of a group's prompts is run once.

    Returns:
        Hidden states (1, T, H), and for each completion the row and column of the state that predicts its first
        token.

    Raises:
        RuntimeError: the trunk dropped ``packing``.
    """
    parts, before = [], []
    for rows in groups:
        shared = _common_prefix(rows) if len(rows) > 1 else 0
        # the last token predicts nothing
        parts.append((rows[0][0][:shared], [prompt[shared:] + completion[:-1] for prompt, completion in rows]))
        before += [len(prompt) - shared - 1 for prompt, _ in rows]
    packing = Packing(parts, device)
    hidden = trunk(
        input_ids=packing.ids,
        attention_mask=MASK_UNREAD,
        position_ids=packing.positions,
        packing=packing,
        use_cache=False,
    ).last_hidden_state
    if not packing.used:
        raise RuntimeError(
            f"{type(trunk).__name__} does not hand what it is called with to its attention; "
            "with attn_implementation: eager every completion is run with a prompt of its own"
        )
    return hidden, [(0, column + n) for column, n in zip(packing.columns(), before, strict=True)]


def _expanded(trunk: nn.Module, groups: list[list[Row]], device: torch.device) -> tuple[Tensor, list[tuple[int, int]]]:
    """Run the trunk on whole rows: the plain path; returns what :func:`_packed` does."""
    flat = [row for rows in groups for row in rows]
    ids, mask = pad_right([prompt + completion[:-1] for prompt, completion in flat], device)
    hidden = trunk(input_ids=ids, attention_mask=mask, position_ids=positions(mask), use_cache=False)
    return hidden.last_hidden_state, [(n, len(prompt) - 1) for n, (prompt, _) in enumerate(flat)]
