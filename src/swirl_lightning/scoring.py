"""Token log-probabilities of given completions: rewards, policy, old and reference alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from swirl_lightning.prompts import TokenIds
from swirl_lightning.sampling import pad_left, pad_right, positions
from swirl_lightning.vocabulary import VocabularySlice


class LogProbs(NamedTuple):
    """Per-token log-probabilities of N completions, padded on the right.

    Attributes:
        values: (N, L) float32, nats; 0 where masked out. Carries gradient if it was enabled.
        entropy: (N, L) float32, nats, of the distribution each token was judged by; no gradient.
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
    max_tokens: int | None = None,
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
            checkpointing needs, since it cannot keep a cache.
        max_tokens: groups are taken in chunks of at most this many tokens (at least one group).
        forced: positions within a completion that the grammar forces: they count for nothing.

    Returns:
        LogProbs with L = the longest completion.
    """
    groups, row_of = _unique_rows(prompts, completions, group_size if share_prefix else 1)
    flat: list[LogProbs] = []
    for chunk in _chunks(groups, max_tokens):
        flat.append(_score_groups(trunk, vocabulary, chunk, temperature, share_prefix, forced))
    length = max(len(row) for row in completions)
    index = torch.tensor(row_of, device=vocabulary.weight.device)
    values, entropy, mask = (
        torch.cat([nn.functional.pad(part[field], (0, length - part[field].shape[1])) for part in flat])[index]
        for field in range(3)
    )
    return LogProbs(values, entropy, mask)


_Row = tuple[TokenIds, TokenIds]


def _unique_rows(
    prompts: Sequence[TokenIds], completions: Sequence[TokenIds], group_size: int
) -> tuple[list[list[_Row]], list[int]]:
    """Groups without repeated rows, and for each of the N rows its place among all that are left."""
    groups: list[list[_Row]] = []
    row_of: list[int] = []
    count = 0
    for start in range(0, len(prompts), group_size):
        seen: dict[tuple[tuple[int, ...], tuple[int, ...]], int] = {}
        rows: list[_Row] = []
        for prompt, completion in zip(
            prompts[start : start + group_size], completions[start : start + group_size], strict=True
        ):
            if not prompt or not completion:
                raise ValueError("an empty prompt or completion cannot be scored")
            key = (tuple(prompt), tuple(completion))
            if key not in seen:
                seen[key] = count + len(rows)
                rows.append((list(prompt), list(completion)))
            row_of.append(seen[key])
        count += len(rows)
        groups.append(rows)
    return groups, row_of


def _chunks(groups: list[list[_Row]], max_tokens: int | None) -> list[list[list[_Row]]]:
    """Consecutive groups, as many as fit into the budget (padding counted), at least one."""
    if max_tokens is None:
        return [groups]
    chunks: list[list[list[_Row]]] = [[]]
    rows = width = 0
    for group in groups:
        rows, width = rows + len(group), max(width, *(len(p) + len(c) for p, c in group))
        if chunks[-1] and rows * width > max_tokens:
            chunks.append([])
            rows, width = len(group), max(len(p) + len(c) for p, c in group)
        chunks[-1].append(group)
    return chunks


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
        cache = DynamicCache()
        trunk(
            input_ids=prefix_ids,
            attention_mask=prefix_mask,
            position_ids=positions(prefix_mask),
            past_key_values=cache,
            use_cache=True,
        )
        member = torch.tensor(group_of, device=device)
        cache.batch_select_indices(member)  # autograd sums the members' gradients into the one prefix
        full_mask = torch.cat([prefix_mask[member], mask], 1)  # (N, P + C)
        hidden = trunk(
            input_ids=ids,
            attention_mask=full_mask,
            position_ids=positions(full_mask)[:, prefix_mask.shape[1] :],
            past_key_values=cache,
            use_cache=True,
        )
    hidden = hidden.last_hidden_state  # (N, C, H)

    targets, completion_mask = pad_right(completions, device)  # (N, L)
    completion_mask = completion_mask.bool()
    completion_mask[:, [place for place in forced if place < targets.shape[1]]] = False
    first = torch.tensor([len(r) - len(c) for r, c in zip(rests, completions, strict=True)], device=device)
    column = first[:, None] + torch.arange(targets.shape[1], device=device)  # (N, L)
    row, place = completion_mask.nonzero(as_tuple=True)  # (T,) twice: only completion positions meet the head
    values, entropy = vocabulary.log_probs(hidden[row, column[row, place]], targets[row, place], temperature)  # (T,)
    blank = values.new_zeros(targets.shape)
    return LogProbs(blank.index_put((row, place), values), blank.index_put((row, place), entropy), completion_mask)
