"""Token log-probabilities of given completions: rewards, policy, old and reference alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from swirl_lightning.engine.budget import Group, TokenBudget
from swirl_lightning.engine.grammar import TokenIds
from swirl_lightning.engine.packing import Packing
from swirl_lightning.engine.padding import pad_right, positions
from swirl_lightning.engine.vocabulary import VocabularySlice

ContextFunction = Callable[[], tuple[AbstractContextManager[None], AbstractContextManager[None]]]


class LogProbs(NamedTuple):
    """Per-token log-probabilities of N completions, padded on the right.

    Attributes:
        values: (N, L) float32, nats; 0 where masked out. Carries gradient if it was enabled.
        entropy: (N, L) float32, nats, of the distribution each token was judged by; without gradient itself, and
            all 0 unless gradient was enabled: no one asks a judge for it.
        mask: (N, L) bool; False on padding and on tokens that the grammar forces.
    """

    values: Tensor
    entropy: Tensor
    mask: Tensor

    def mean_per_token(self) -> Tensor:
        """(N,) mean over each row's tokens: the reward of the paper, and minus the SFT loss."""
        return self.values.sum(1) / self.mask.sum(1).clamp(min=1)


def score(
    trunk: nn.Module,
    vocabulary: VocabularySlice,
    prompts: Sequence[TokenIds],
    completions: Sequence[TokenIds],
    *,
    group_size: int = 1,
    temperature: float = 1.0,
    shared_attention: bool = True,
    budget: TokenBudget | None = None,
    recompute_contexts: ContextFunction | None = None,
    forced: Sequence[int] = (),
) -> LogProbs:
    """Log-probability of each completion after its prompt, under the constrained distribution.

    Rows n * G ... n * G + G - 1 form a group. What the prompts of a group have in common is run once for all
    members, forward and backward; equal rows are run once.

    Args:
        trunk: maps ids to ``last_hidden_state``; the adapter in use is the caller's choice.
        vocabulary: the head cut to the ids that completions may use.
        prompts: N prompts as ids, none empty.
        completions: N completions as ids, none empty, all within the vocabulary.
        group_size: G; 1 shares nothing.
        temperature: divides the logits.
        shared_attention: needs :func:`install`; False runs every row whole: the plain path.
        budget: of one forward pass. With gradient, each of several passes is run again in the backward pass, so
            that the activations of one of them exist at a time.
        recompute_contexts: ``context_fn`` of torch's checkpoint for those passes.
        forced: positions within a completion that the grammar forces: they count for nothing.

    Returns:
        LogProbs with L = the longest completion.
    """
    groups, row_of = _unique_rows(prompts, completions, group_size if shared_attention else 1)

    def run(batch: list[Group], several: bool) -> LogProbs:
        parts = [[(prompts[n], completions[n]) for n in group.rows] for group in batch]
        work = partial(_score_groups, trunk, vocabulary, parts, temperature, shared_attention, forced)
        if several and torch.is_grad_enabled() and recompute_contexts is not None:
            again: LogProbs = checkpoint(work, use_reentrant=False, context_fn=recompute_contexts)
            return again
        return work()

    done = (budget or TokenBudget()).run(groups, run)
    place = {row: number for number, row in enumerate(row for rows, _ in done for row in rows)}
    index = torch.tensor([place[row] for row in row_of], device=vocabulary.weight.device)
    length = max(len(row) for row in completions)
    values, entropy, mask = (
        torch.cat([nn.functional.pad(part[field], (0, length - part[field].shape[1])) for _, part in done])[index]
        for field in range(3)
    )
    return LogProbs(values, entropy, mask)


def token_mask(completions: Sequence[TokenIds], forced: Sequence[int], device: torch.device) -> Tensor:
    """(N, L) bool: the tokens that count, neither padding nor forced by the grammar."""
    return _without_forced(pad_right(completions, device)[1], forced)


def _without_forced(mask: Tensor, forced: Sequence[int]) -> Tensor:
    mask = mask.bool()
    mask[:, [place for place in forced if place < mask.shape[1]]] = False
    return mask


_Row = tuple[TokenIds, TokenIds]


def _unique_rows(
    prompts: Sequence[TokenIds], completions: Sequence[TokenIds], group_size: int
) -> tuple[list[Group], list[int]]:
    """Groups without repeated rows, and for each of the N rows the one that stands for it."""
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
        groups.append(Group(rows, max(len(prompts[n]) + len(completions[n]) for n in rows)))
    return groups, row_of


def _common_prefix(rows: list[_Row]) -> int:
    """Length of the ids that all prompts of a group begin with; each keeps at least one id of its own."""
    first, last = min(p for p, _ in rows), max(p for p, _ in rows)
    shared = 0
    for a, b in zip(first, last, strict=False):
        if a != b:
            break
        shared += 1
    return min(shared, *(len(p) - 1 for p, _ in rows))


def _score_groups(
    trunk: nn.Module,
    vocabulary: VocabularySlice,
    groups: list[list[_Row]],
    temperature: float,
    shared_attention: bool,
    forced: Sequence[int],
) -> LogProbs:
    device = vocabulary.weight.device
    completions = [completion for rows in groups for _, completion in rows]
    hidden, first = (_packed if shared_attention else _expanded)(trunk, groups, device)
    targets, completion_mask = pad_right(completions, device)  # (N, L)
    completion_mask = _without_forced(completion_mask, forced)
    rows, columns = torch.tensor(first, device=device).T  # (N,) twice
    row, place = completion_mask.nonzero(as_tuple=True)  # (T,) twice: only completion positions meet the head
    values, entropy = vocabulary.log_probs(
        hidden[rows[row], columns[row] + place], targets[row, place], temperature
    )  # (T,)
    blank = values.new_zeros(targets.shape)
    return LogProbs(blank.index_put((row, place), values), blank.index_put((row, place), entropy), completion_mask)


def _packed(trunk: nn.Module, groups: list[list[_Row]], device: torch.device) -> tuple[Tensor, list[tuple[int, int]]]:
    """Hidden states, with what the prompts of a group have in common run once, and where completions are predicted.

    Returns:
        (R, T, H), and for each completion the row and column of the state that predicts its first token.
    """
    parts, before = [], []
    for rows in groups:
        shared = _common_prefix(rows) if len(rows) > 1 else 0
        # the last token predicts nothing
        parts.append((rows[0][0][:shared], [prompt[shared:] + completion[:-1] for prompt, completion in rows]))
        before += [len(prompt) - shared - 1 for prompt, _ in rows]
    packing = Packing(parts, device, one_row=device.type == "cpu")
    hidden = trunk(
        input_ids=packing.ids,
        attention_mask=packing.mask,
        position_ids=packing.positions,
        packing=packing,
        use_cache=False,
    ).last_hidden_state
    if not packing.heeded:
        raise RuntimeError(
            f"{type(trunk).__name__} does not hand what it is called with to its attention; "
            "with attn_implementation: eager every completion is run with a prompt of its own"
        )
    return hidden, [(row, column + n) for (row, column), n in zip(packing.places(), before, strict=True)]


def _expanded(trunk: nn.Module, groups: list[list[_Row]], device: torch.device) -> tuple[Tensor, list[tuple[int, int]]]:
    """As :func:`_packed`, with every row run whole: the plain path."""
    flat = [row for rows in groups for row in rows]
    ids, mask = pad_right([prompt + completion[:-1] for prompt, completion in flat], device)
    hidden = trunk(input_ids=ids, attention_mask=mask, position_ids=positions(mask), use_cache=False)
    return hidden.last_hidden_state, [(n, len(prompt) - 1) for n, (prompt, _) in enumerate(flat)]
