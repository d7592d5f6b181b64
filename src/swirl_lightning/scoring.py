"""Token log-probabilities of given completions: rewards, policy, old and reference alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import Cache, DynamicCache

from swirl_lightning.budget import Group, TokenBudget
from swirl_lightning.kv_cache import NO_MASK_BUILT, GroupCache
from swirl_lightning.prompts import TokenIds
from swirl_lightning.sampling import pad_left, pad_right, positions
from swirl_lightning.vocabulary import VocabularySlice

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
    share_prefix: bool = True,
    shared_attention: bool = True,
    budget: TokenBudget | None = None,
    recompute_contexts: ContextFunction | None = None,
    forced: Sequence[int] = (),
) -> LogProbs:
    """Log-probability of each completion after its prompt, under the constrained distribution.

    Rows n * G ... n * G + G - 1 form a group. What the prompts of a group have in common is run once and
    its key-value cache is shared by the members, forward and backward; equal rows are run once.

    Args:
        trunk: maps ids to ``last_hidden_state``; the adapter in use is the caller's choice.
        vocabulary: the head cut to the ids that completions may use.
        prompts: N prompts as ids, none empty.
        completions: N completions as ids, none empty, all within the vocabulary.
        group_size: G; 1 shares nothing.
        temperature: divides the logits.
        share_prefix: False runs every row whole: the plain path, and the one that gradient
            checkpointing of layers needs, since it cannot keep a cache.
        shared_attention: members attend to one copy of the prefix, on CPUs, which needs
            :func:`swirl_lightning.attention.install`; False gives each a copy of its keys and values.
        budget: of one forward pass. With gradient, each of several passes is run again in the backward pass, so
            that the activations of one of them exist at a time.
        recompute_contexts: ``context_fn`` of torch's checkpoint for those passes.
        forced: positions within a completion that the grammar forces: they count for nothing.

    Returns:
        LogProbs with L = the longest completion.
    """
    groups, row_of = _unique_rows(prompts, completions, group_size if share_prefix else 1)

    def run(batch: list[Group], several: bool) -> LogProbs:
        parts = [[(prompts[n], completions[n]) for n in group.rows] for group in batch]
        work = partial(_score_groups, trunk, vocabulary, parts, temperature, share_prefix, shared_attention, forced)
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
        rows = tuple(seen.values())
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
    share_prefix: bool,
    shared_attention: bool,
    forced: Sequence[int],
) -> LogProbs:
    device = vocabulary.weight.device
    share_prefix = share_prefix and any(len(rows) > 1 for rows in groups)
    prefix_lengths = [_common_prefix(rows) if share_prefix else 0 for rows in groups]
    rests, completions, group_of = [], [], []
    for number, (rows, shared) in enumerate(zip(groups, prefix_lengths, strict=True)):
        for prompt, completion in rows:
            rests.append(prompt[shared:] + completion[:-1])  # the last token predicts nothing
            completions.append(completion)
            group_of.append(number)

    ids, mask = pad_right(rests, device)  # (N, C)
    if max(prefix_lengths) == 0:
        hidden = trunk(input_ids=ids, attention_mask=mask, position_ids=positions(mask), use_cache=False)
    else:
        prefix_ids, prefix_mask = pad_left(
            [rows[0][0][:shared] for rows, shared in zip(groups, prefix_lengths, strict=True)], device
        )  # (B, P)
        cache: Cache = DynamicCache()
        trunk(
            input_ids=prefix_ids,
            attention_mask=prefix_mask,
            position_ids=positions(prefix_mask),
            past_key_values=cache,
            use_cache=True,
        )
        member = torch.tensor(group_of, device=device)
        full_mask = torch.cat([prefix_mask[member], mask], 1)  # (N, P + C)
        places = positions(full_mask)[:, prefix_mask.shape[1] :]
        if shared_attention and device.type == "cpu":
            cache, full_mask = GroupCache(cache, prefix_lengths, [len(rows) for rows in groups]), NO_MASK_BUILT
        else:
            cache.batch_select_indices(member)  # autograd sums the members' gradients into the one prefix
        hidden = trunk(
            input_ids=ids, attention_mask=full_mask, position_ids=places, past_key_values=cache, use_cache=True
        )
    hidden = hidden.last_hidden_state  # (N, C, H)

    targets, completion_mask = pad_right(completions, device)  # (N, L)
    completion_mask = _without_forced(completion_mask, forced)
    first = torch.tensor([len(r) - len(c) for r, c in zip(rests, completions, strict=True)], device=device)
    column = first[:, None] + torch.arange(targets.shape[1], device=device)  # (N, L)
    row, place = completion_mask.nonzero(as_tuple=True)  # (T,) twice: only completion positions meet the head
    values, entropy = vocabulary.log_probs(hidden[row, column[row, place]], targets[row, place], temperature)  # (T,)
    blank = values.new_zeros(targets.shape)
    return LogProbs(blank.index_put((row, place), values), blank.index_put((row, place), entropy), completion_mask)
