"""Memory of a training: parameters and bytes of the base and the adapters, and the estimated peak."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from swirl_lightning.checkpoints.state import kept_after_a_step
from swirl_lightning.engine.grammar import Grammar, TokenIds
from swirl_lightning.engine.quantization import dense_bytes, merged_bytes
from swirl_lightning.engine.scoring import LogProbs
from swirl_lightning.engine.speculative import LARGEST_WINDOW, PASS_TOKENS
from swirl_lightning.engine.tensor_memory import PeakMemory, peak_of
from swirl_lightning.engine.vocabulary import logits_per_chunk
from swirl_lightning.roles import Role
from swirl_lightning.rollout_engines import SharedPrompts
from swirl_lightning.schedule import WARMUP, PhaseName

if TYPE_CHECKING:
    from swirl_lightning.module import SWIRL

GIB = 2**30
_IDS = 64  # of a head that is small beside the trunk
_LOGITS_COPIES = 3  # logits, probabilities and a temporary live at once in the chunked head
_DRAW_BYTES = 32  # a token's logit while sampling: logits, probabilities, sorted values, sums and temporaries


# ---- what is there -------------------------------------------------------------------------------
@dataclass(frozen=True)
class Size:
    """Number of parameters as the architecture counts them, and the bytes that hold them."""

    parameters: int
    bytes: int


def size_of(parameters: Iterable[Tensor]) -> Size:
    """Count parameters and bytes; a 4-bit one counts by its original shape, and with its statistics."""
    count, held, seen = 0, 0, set()
    for parameter in parameters:
        if parameter.data_ptr() in seen:  # tied weights
            continue
        seen.add(parameter.data_ptr())
        state = getattr(parameter, "quant_state", None)
        count += parameter.numel() if state is None else state.shape.numel()
        held += parameter.nbytes + (0 if state is None else _statistics(state))
    return Size(count, held)


def _statistics(state: Any) -> int:
    """Count the bytes of a bitsandbytes QuantState: scales, code book and, with double quantisation, theirs."""
    own = sum(t.nbytes for t in (state.absmax, state.code, state.offset) if isinstance(t, Tensor))
    return own + (_statistics(state.state2) if getattr(state, "state2", None) is not None else 0)


# ---- estimating ----------------------------------------------------------------------------------
@dataclass(frozen=True)
class LongestPair:
    """The longest states of some transitions, as content ids. What is generated is taken at the grammar's longest."""

    before: TokenIds
    after: TokenIds


@dataclass(frozen=True)
class MicroBatch:
    """Sizes of what runs at one time on a device.

    Attributes:
        pairs: transitions of a micro-batch.
        warmup: the same in the warm-up.
        labelled: labelled triples beside the pairs.
        sampled: transitions whose rollouts may be sampled together.
    """

    pairs: int
    warmup: int
    labelled: int
    sampled: int


@dataclass(frozen=True)
class MemoryEstimate:
    """Sizes, and the estimated peak of each part of a step, in bytes.

    Attributes:
        base: the frozen base, with the copies of weights that are kept: dequantised ones, and rows of the head.
        adapters: each adapter by name.
        trainable: names of those that train.
        codec: parts that the backbone keeps apart from the base (an image tokenizer).
        training: gradients and optimiser states of the trainable adapters.
        steps: bytes that each part of a step adds at its peak (``fwm rollout``, ``fwm update``, ...).
    """

    base: Size
    adapters: dict[str, Size]
    trainable: tuple[str, ...]
    codec: Size
    training: int
    steps: dict[str, int]

    @property
    def resident(self) -> int:
        """Bytes that are held throughout."""
        return self.base.bytes + self.codec.bytes + sum(s.bytes for s in self.adapters.values()) + self.training

    @property
    def peak(self) -> int:
        """Estimated peak in bytes."""
        return self.resident + max(self.steps.values(), default=0)

    def __str__(self) -> str:
        """The report as lines of text."""
        adapters = ", ".join(
            f"{name} {size.parameters:,}" + ("" if name in self.trainable else " (frozen)")
            for name, size in self.adapters.items()
        )
        highest = max(self.steps, key=lambda name: self.steps[name], default="")
        steps = ", ".join(f"{name} {size / GIB:.2f}" for name, size in self.steps.items())
        return "\n".join(
            [
                f"base: {self.base.parameters:,} parameters in {self.base.bytes / GIB:.2f} GiB",
                f"adapters: {adapters}",
                f"resident: {self.resident / GIB:.2f} GiB with gradients and optimiser, "
                f"of it {self.codec.bytes / GIB:.2f} image tokenizer",
                f"steps add, in GiB: {steps}",
                f"estimated peak: {self.peak / GIB:.2f} GiB per device, reached in {highest!r}",
            ]
        )


def report(module: SWIRL, batch: MicroBatch, longest: LongestPair, phases: Sequence[PhaseName]) -> MemoryEstimate:
    """Estimate the memory of training on this device: run each part of the phases on a few rows.

    The parts run as in training, by ``sample`` and ``log_prob``, and so with any family, adapter size and kernel; more
    rows are extrapolated. Rollouts are drawn for two tokens alone: keys and values of the others are computed.

    Args:
        module: configured, on its device.
        batch: sizes of a micro-batch.
        longest: the states that the parts run on.
        phases: those that will run.
    """
    adapters: dict[str, Size] = {name: size_of(module.adapters.parameters(name)) for name in module.adapters.names}
    trained = [p for name in module.adapters.trainable for p in module.adapters.parameters(name)]
    ours = {id(p) for name in module.adapters.names for p in module.adapters.parameters(name)}
    held = [p for p in module.parameters() if id(p) not in ours]
    base = size_of([*held, *module.buffers()])
    copied = dense_bytes(module, module.device) + sum(module.models.vocabulary(r).copied_bytes for r in module.roles)
    kept = [m for m in vars(module.backbone).values() if isinstance(m, nn.Module)]
    return MemoryEstimate(
        base=Size(size_of(held).parameters, base.bytes + copied),
        adapters=adapters,
        trainable=module.adapters.trainable,
        codec=size_of(t for m in kept for t in [*m.parameters(), *m.buffers()]),
        training=round(sum(p.nbytes for p in trained) * (1 + _optimizer_ratio(module))),
        steps=_Estimator(module, longest).steps(batch, phases),
    )


def _optimizer_ratio(module: SWIRL) -> float:
    """Measure the bytes of the optimiser's state per byte of a parameter, by a step on the largest one."""
    trained = (p for name in module.adapters.trainable for p in module.adapters.parameters(name))
    parameter = max(trained, key=torch.numel)
    kept = kept_after_a_step(parameter, module.optimizer_factory)
    return sum(t.nbytes for t in kept.values() if isinstance(t, Tensor) and t.numel() > 1) / parameter.nbytes


@dataclass(frozen=True)
class _Passes:
    """A pass over a few rows, and one over some more: what is linear in the tokens that run at one time.

    Attributes:
        shared: tokens that the rows of a group share, and that run once.
        own: tokens that each row has for itself.
        tokens: that ran in each pass.
        kept: bytes that the graph of each keeps.
        peaks: bytes of each at its peak, of the backward pass where there is one.
    """

    shared: int
    own: int
    tokens: tuple[int, int]
    kept: tuple[int, int]
    peaks: tuple[int, int]

    def at(self, values: tuple[int, int], tokens: int) -> int:
        """Extrapolate ``kept`` or ``peaks``."""
        return round(values[0] + self.slope(values) * (tokens - self.tokens[0]))

    def slope(self, values: tuple[int, int]) -> float:
        """Bytes per token."""
        return (values[1] - values[0]) / max(1, self.tokens[1] - self.tokens[0])


_Run = Callable[[int, int], dict[Role, LogProbs]]
"""Scores some groups of some rows."""


class _Estimator:
    """Estimator of the peaks of a step's parts, linear in the tokens that run at one time."""

    def __init__(self, module: SWIRL, longest: LongestPair) -> None:
        self.module, self.longest = module, longest
        self.models = module.models
        self.device = module.device
        self.budget = module.max_tokens_per_forward
        self.shares = self.models.engine.config.shared_attention
        # made once: the engine keeps a head for each
        self._narrow = {role: _few_ids(self.models.of(role).grammar) for role in module.roles}

    def steps(self, batch: MicroBatch, phases: Sequence[PhaseName]) -> dict[str, int]:
        """Estimate the bytes that each part of the phases adds."""
        found: dict[str, int] = {}
        if WARMUP in phases:
            found["warmup"] = self._supervised(batch.warmup, self.module.roles)
        if PhaseName.BOOTSTRAP in phases:
            named = self._rollout(Role.IDM, batch.pairs, 1)
            found["bootstrap"] = max(named, self._supervised(batch.pairs, (Role.FWM,), [batch.labelled]))
        for phase, role, judge in ((PhaseName.ONE, Role.FWM, Role.IDM), (PhaseName.TWO, Role.IDM, Role.FWM)):
            if phase in phases:
                size = self.module.group_size(role)
                named = self._rollout(Role.IDM, batch.sampled, 1) if phase == PhaseName.ONE else 0  # actions z
                found[f"{role} rollout"] = max(named, self._rollout(role, batch.sampled, size))
                found[f"{role} reward"] = self._reward(judge, batch.pairs, size)
                found[f"{role} update"] = self._update(role, batch, size)
        return found

    # ---- parts of a step -------------------------------------------------------------------------
    def _supervised(self, pairs: int, roles: Sequence[Role], beside: Sequence[int] = ()) -> int:
        """Estimate SFT: graphs of all models, and those of rows beside, live until the backward pass."""

        def run(groups: int, size: int) -> dict[Role, LogProbs]:
            return {role: self._log_prob(role, groups * size, 1, training=True) for role in roles}

        return self._trained(self._passes(run, pairs, training=True), roles, [(1, pairs), *((n, 1) for n in beside)])

    def _update(self, role: Role, batch: MicroBatch, size: int) -> int:
        """Estimate a policy update, beside which the graphs of the anchor and of labelled triples are kept."""
        beside = [batch.labelled, batch.pairs if role == Role.FWM and self.module.anchor_weight > 0 else 0]
        if self.module.learner.trains_one:
            return self._supervised(batch.pairs, (role,), beside)

        def run(groups: int, size: int) -> dict[Role, LogProbs]:
            return {role: self._log_prob(role, groups, size, training=True)}

        shapes = [(batch.pairs, size), *((rows, 1) for rows in beside)]
        return self._trained(self._passes(run, size, training=True), (role,), shapes)

    def _trained(self, passes: _Passes, roles: Sequence[Role], shapes: Sequence[tuple[int, int]]) -> int:
        """Estimate a backward pass through graphs of groups and their sizes.

        All graphs are kept, but for those beyond the budget, which run again; one at a time is differentiated, and the
        head's temporaries are gone before that of the layers.
        """
        kept = spare = 0
        for groups, size in shapes:
            if groups == 0:
                continue
            tokens = self._at_once(passes, groups, size)
            graph = passes.at(passes.kept, tokens)
            heads = max(self._logits(role, groups * size, tokens) for role in roles)
            peak = max(passes.at(passes.peaks, tokens), graph + heads)
            if tokens < groups * (passes.shared + size * passes.own):
                graph = 0
            kept, spare = kept + graph, max(spare, peak - graph)
        return kept + spare

    def _reward(self, judge: Role, pairs: int, size: int) -> int:
        """Estimate a reward: log-probability of one action or state under each of a group's conditions."""
        passes = self._passes(lambda *shape: {judge: self._log_prob(judge, *shape)}, size)
        tokens = self._at_once(passes, pairs, size)
        # nothing of a layer is kept
        return max(passes.at(passes.peaks, tokens), self._logits(judge, pairs * size, tokens))

    def _rollout(self, role: Role, pairs: int, size: int) -> int:
        """Estimate a rollout: two tokens are drawn, and the keys and values of the others are computed."""
        model, actions = self.models.of(role), self.models.idm.grammar

        def conditions(count: int) -> list[TokenIds]:
            return _contents(actions, count) if role == Role.FWM else [self.longest.after] * count

        prompt, longest = len(model.prompts([self.longest.before], conditions(1))[0]), model.grammar.max_length
        ours = isinstance(self.models.rollout_engine, SharedPrompts)
        shares, budget = self.shares and ours, self.module.max_cached_tokens or self.budget
        if ours and budget is not None:
            shared, own = (prompt, longest) if shares else (0, prompt + longest)
            pairs = max(1, min(pairs, budget // (shared + size * own)))
            size = size if pairs > 1 else min(size, max(1, (budget - shared) // own))
        short = model.within(replace(model.grammar, max_length=2, forced=()))

        def run(count: int) -> None:
            before, keys = [self.longest.before] * count, [str(n) for n in range(count)]
            short.sample(before, conditions(count), keys, self.module.policy_sampling[role], size)

        run(1)  # what is made once and stays is not part of a step
        total = peak_of(lambda: run(min(pairs, 2)), self.device)
        if pairs > 2:
            total += (peak_of(lambda: run(3), self.device) - total) * (pairs - 2)
        per_token, layers = model.cache_bytes()
        rollouts = pairs * size
        prompts, cached = (pairs if shares else rollouts) * prompt * per_token, rollouts * longest * per_token
        if not shares:  # a layer grows by being copied
            cached += (prompts + cached) // layers
        drawing = max(self._drawing(role, rollouts), self._drafted(role, rollouts) if shares else 0)
        return max(total, merged_bytes(self.module) + prompts + cached + drawing)

    def _drawing(self, role: Role, tokens: int) -> int:
        """Compute the bytes of the logits that tokens are drawn from."""
        return tokens * len(self.models.vocabulary(role)) * _DRAW_BYTES

    def _drafted(self, role: Role, rollouts: int) -> int:
        """Estimate a pass that runs drafts: its layers, masks of attention, and logits."""
        longest = self.models.of(role).grammar.max_length
        if role != Role.FWM or not self.models.engine.config.speculates(self.device):
            return 0
        tokens = min(PASS_TOKENS, rollouts * min(LARGEST_WINDOW, longest))
        decoder = self.module.adapters.model.config.get_text_config(decoder=True)
        mask = tokens * longest * (decoder.num_attention_heads + 1) * self.module.backbone.dtype.itemsize
        passes = self._passes(lambda *shape: {role: self._log_prob(role, *shape)}, rollouts)
        drawn = min(tokens, logits_per_chunk(self.device) // len(self.models.vocabulary(role)))
        return max(self._drawing(role, drawn), mask + max(0, passes.at(passes.peaks, tokens)))

    # ---- passes ----------------------------------------------------------------------------------
    def _log_prob(self, role: Role, pairs: int, size: int, training: bool = False) -> LogProbs:
        """Score ``size`` sequences for each pair, all of them different, through a head of a few ids.

        With gradient they are different completions of one prompt, as in an update; without they are equal ones under
        different conditions, as in a reward.
        """
        model, x, count = self.models.of(role), [self.longest.before] * pairs, pairs * size
        actions, states = (self.models.of(each).grammar for each in (Role.IDM, Role.FWM))
        own, other = (states, actions) if role == Role.FWM else (actions, states)
        if not training:
            return model.reward_model.within(self._narrow[role]).log_prob(
                _contents(own, 1) * pairs, x, _contents(other, count)
            )
        condition = _contents(actions, pairs) if role == Role.FWM else [self.longest.after] * pairs
        return model.within(self._narrow[role]).log_prob(_contents(own, count), x, condition, training=True)

    def _passes(self, run: _Run, size: int, training: bool = False) -> _Passes:
        """Measure passes over rows of groups of ``size``, and their backward passes if ``training``."""
        run(1, 1)  # what is made once and stays is not part of a step
        one, few = self._scored_at_once, min(size, 2)
        # of several rows, since rows of one length have no mask
        measured = [self._measured(run, 1, few, training)]
        two = self._scored_at_once
        measured += [self._measured(run, *((1, 4) if size >= 4 else (2, size)), training)]
        tokens, kept, peaks = zip(*measured, strict=True)
        own = two - one if few == 2 else one
        return _Passes(one - own, own, tokens, kept, peaks)

    def _measured(self, run: _Run, groups: int, size: int, training: bool) -> tuple[int, int, int]:
        """Return the tokens that ran at one time, the bytes that are kept, and those of the peak."""
        with PeakMemory(self.device) as memory:
            scored = run(groups, size)
            kept = memory.now
            if training:  # after the switch back from the adapters in use
                total = torch.stack([part.values.sum() for part in scored.values()]).sum()
                names = {self.models.of(role).adapter for role in scored}
                torch.autograd.grad(total, [p for name in names for p in self.module.adapters.parameters(name)])
            return self._scored_at_once, kept, memory.peak

    @property
    def _scored_at_once(self) -> int:
        return self.models.engine.scoring_budget.largest

    def _at_once(self, passes: _Passes, groups: int, size: int) -> int:
        """Count the tokens that run at one time within the budget."""
        tokens = groups * (passes.shared + size * passes.own)
        return tokens if self.budget is None else max(passes.tokens[0], min(tokens, self.budget))

    def _logits(self, role: Role, rows: int, tokens: int) -> int:
        """Compute the bytes of the logits that exist at one time for completions, with ``tokens`` at once."""
        entries = min(rows * self.models.of(role).grammar.max_length, tokens) * len(self.models.vocabulary(role))
        return min(entries, logits_per_chunk(self.device)) * 4 * _LOGITS_COPIES


def _few_ids(grammar: Grammar) -> Grammar:
    """Return the grammar with some of its ids."""
    ends = () if grammar.eos is None else (grammar.eos,)
    return replace(grammar, allowed=tuple(sorted({*grammar.content_ids[:_IDS], *ends})))


def _contents(grammar: Grammar, count: int) -> list[TokenIds]:
    """Make different contents from a few ids: of the greatest length or, where lengths vary, by turns a token less."""
    ids, ends = grammar.content_ids[:_IDS], grammar.eos is not None
    length = grammar.free_length - ends
    digits = [[ids[n // len(ids) ** k % len(ids)] for k in range(3)] for n in range(count)]
    whole = [row[:length] + [ids[0]] * (length - len(row)) for row in digits]
    return [row[: max(1, length - n % 2)] if ends else row for n, row in enumerate(whole)]
