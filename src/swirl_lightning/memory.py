"""Memory of a run: parameters and bytes of the base and the adapters, and the estimated peak of training."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from swirl_lightning.engine.grammar import Grammar
from swirl_lightning.engine.quantization import dense_bytes, merged_bytes
from swirl_lightning.engine.speculative import LARGEST_WINDOW, PASS_TOKENS
from swirl_lightning.engine.tensor_memory import peak_of
from swirl_lightning.engine.vocabulary import logits_per_chunk
from swirl_lightning.roles import Role
from swirl_lightning.schedule import WARMUP, PhaseName

if TYPE_CHECKING:
    from swirl_lightning.module import SWIRL

GIB = 2**30
_PROBES = ((16, 2, 16), (48, 2, 16), (16, 2, 48), (16, 6, 16))  # (prompt, group, completion) in tokens
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
class Lengths:
    """Lengths of the longest prompt and completion of a role, in tokens."""

    prompt: int
    completion: int


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


def report(
    module: SWIRL,
    batch_size: int,
    warmup_batch_size: int,
    sampled_pairs: int,
    lengths: dict[Role, Lengths],
    phases: Sequence[PhaseName],
) -> MemoryEstimate:
    """Estimate the memory of training on this device, from the module's settings and a few short passes.

    Saved activations, caches and temporaries are measured on prompts of a few dozen tokens and extrapolated, so
    that any family, adapter size and kernel is covered. Memory that depends on the vocabulary is computed.
    Completions are taken at their longest.

    Args:
        module: configured, on its device.
        batch_size: transitions per micro-batch and device.
        warmup_batch_size: the same in the warm-up.
        sampled_pairs: transitions whose rollouts may be sampled together.
        lengths: of both roles.
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
        steps=_Estimator(module).steps(batch_size, warmup_batch_size, sampled_pairs, lengths, phases),
    )


def _optimizer_ratio(module: SWIRL) -> float:
    """Measure the bytes of the optimiser's state per byte of a parameter, by a step on one of 4,096 numbers."""
    parameter = nn.Parameter(torch.zeros(4096, device=module.device))
    optimizer = module.optimizer_factory([{"params": [parameter]}])
    parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    held = [t for state in optimizer.state.values() for t in state.values() if isinstance(t, Tensor) and t.numel() > 1]
    return sum(t.nbytes for t in held) / parameter.nbytes


class _Estimator:
    """Estimator of the peaks of a step's parts, linear in the tokens that run."""

    def __init__(self, module: SWIRL) -> None:
        self.module = module
        self.models = module.models
        self.device = module.device
        self.shares = self.models.engine.config.shared_attention
        self._fits: dict[str, Tensor] = {}

    def steps(
        self,
        batch_size: int,
        warmup_batch_size: int,
        sampled_pairs: int,
        lengths: dict[Role, Lengths],
        phases: Sequence[PhaseName],
    ) -> dict[str, int]:
        """Estimate the bytes that each part of the phases adds."""
        found: dict[str, int] = {}
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):  # leave no trace in random states
            if WARMUP in phases:
                found["warmup"] = self._supervised(warmup_batch_size, lengths, self.module.roles)
            if PhaseName.BOOTSTRAP in phases:
                found["bootstrap"] = self._supervised(batch_size, lengths, (Role.FWM,))
            for phase, role, judge in ((PhaseName.ONE, Role.FWM, Role.IDM), (PhaseName.TWO, Role.IDM, Role.FWM)):
                if phase in phases:
                    size = self.module.group_size(role)
                    found[f"{role} rollout"] = self._rollout(role, sampled_pairs, size, lengths[role])
                    found[f"{role} reward"] = self._judge(judge, batch_size, size, lengths[judge], lengths[role])
                    found[f"{role} update"] = self._update(role, batch_size, size, lengths)
        return found

    # ---- parts of a step -------------------------------------------------------------------------
    def _supervised(self, rows: int, lengths: dict[Role, Lengths], roles: Sequence[Role]) -> int:
        """Estimate SFT: graphs of all models live until the backward pass; the head's temporaries do not overlap."""
        shapes = [(lengths[role].prompt, 1, lengths[role].completion) for role in roles]
        tokens = sum(rows * self._tokens(shape) for shape in shapes)
        fitted = self._fitted("warmup" if len(roles) > 1 else "update")
        masks = sum(self._mask(rows, shape, True) for shape in shapes)
        heads = [self._logits(role, rows * lengths[role].completion) for role in roles]
        return max(0, round(float(fitted[0] + fitted[1] * tokens))) + masks + max(heads)

    def _update(self, role: Role, groups: int, size: int, lengths: dict[Role, Lengths]) -> int:
        length = lengths[role]
        budget = self.module.max_tokens_per_forward
        at_once, members = self._at_once(budget, groups, (length.prompt, size, length.completion))
        total = self._predict("update", at_once, (length.prompt, members, length.completion))
        total += self._logits(role, at_once * members * length.completion)
        if role == Role.FWM and self.module.anchor_weight > 0:  # one row more per group
            anchor = (length.prompt, 1, length.completion)
            total += round(self._kept_per_token() * groups * self._tokens(anchor)) + self._mask(groups, anchor, True)
        return total

    def _kept_per_token(self) -> float:
        """Measure the bytes that a graph keeps per token while another one is differentiated.

        One graph takes k + t per token, with t for temporaries of its backward pass; two of equal size take
        k + t / 2 per token, since only one at a time is differentiated.
        """
        one, two = (float(self._fitted(kind)[1]) for kind in ("update", "warmup"))
        return min(max(2 * two - one, two / 2), two)

    def _judge(self, role: Role, groups: int, size: int, length: Lengths, judged: Lengths) -> int:
        """Estimate a reward: members of a group share all of the prompt but the part that is scored."""
        own = min(judged.completion, length.prompt)
        shape = (length.prompt - own, size, own + length.completion)
        groups, size = self._at_once(self.module.max_tokens_per_forward, groups, shape)
        shape = (shape[0], size, shape[2])
        head = self._logits(role, groups * size * length.completion)
        return max(self._predict("scoring", groups, shape), head)  # nothing of a layer is kept

    def _rollout(self, role: Role, groups: int, size: int, length: Lengths) -> int:
        """Estimate a rollout: keys and values, the pass of the prompts, the drawing of a token, merged weights."""
        budget = self.module.max_cached_tokens or self.module.max_tokens_per_forward
        groups, size = self._at_once(budget, groups, (length.prompt, size, length.completion))
        per_token, layers = self.models.of(role).cache_bytes()
        prompts, rollouts = groups * length.prompt * per_token, groups * size * length.completion * per_token
        if not self.shares:  # every rollout has a prompt, and a layer grows by being copied
            rollouts = (size * prompts + rollouts) * (layers + 1) // layers - prompts
        vocabulary, tokens = len(self.models.vocabulary(role)), groups * size
        several = 0  # tokens of a pass that runs drafts
        if role == Role.FWM and self.models.engine.config.speculates(self.device):
            several = min(PASS_TOKENS, tokens * LARGEST_WINDOW, tokens * length.completion)
        drawing = (
            max(tokens, min(several, logits_per_chunk(self.module.device) // vocabulary)) * vocabulary * _DRAW_BYTES
        )
        running = 0
        if several:  # with the mask of a layer, which attention wants of every head
            decoder = self.module.adapters.model.config.get_text_config(decoder=True)
            mask = several * length.completion * (decoder.num_attention_heads + 1) * self.module.backbone.dtype.itemsize
            running = self._predict("scoring", 1, (0, 1, several)) + mask
        prefill = self._predict("scoring", groups, (length.prompt, 1, 0))
        return prompts + max(prefill, rollouts + max(drawing, running)) + merged_bytes(self.module)

    def _at_once(self, budget: int | None, groups: int, shape: tuple[int, int, int]) -> tuple[int, int]:
        """Return the groups, and the rows of each, that run at one time within the budget."""
        prompt, size, completion = shape
        tokens = self._tokens(shape)
        if budget is None or budget >= tokens:
            return min(groups, (budget or groups * tokens) // tokens), size
        shared = prompt if self.shares else 0
        return 1, max(1, (budget - shared) // (completion if self.shares else prompt + completion))

    def _logits(self, role: Role, tokens: int) -> int:
        return (
            min(tokens * len(self.models.vocabulary(role)), logits_per_chunk(self.module.device)) * 4 * _LOGITS_COPIES
        )

    # ---- probes ----------------------------------------------------------------------------------
    def _tokens(self, shape: tuple[int, int, int]) -> int:
        """Count the tokens of a group that run."""
        prompt, size, completion = shape
        return prompt + size * completion if self.shares else size * (prompt + completion)

    def _mask(self, groups: int, shape: tuple[int, int, int], training: bool) -> int:
        """Compute the bytes that are quadratic in a row's tokens, and too few to measure in a probe: of masks, and
        with ``attn_implementation: eager`` of attention's weights.

        SDPA adds its mask to the products, and so makes a copy of it in their type in every layer, which the backward
        pass of that layer reads again. Where layers are checkpointed, one layer's exists at a time.
        """
        prompt, size, completion = shape
        if self.shares:
            return 0
        entries = groups * size * (prompt + completion) ** 2
        backbone, decoder = self.module.backbone, self.module.adapters.model.config.get_text_config(decoder=True)
        kept = decoder.num_hidden_layers if training and not backbone.gradient_checkpointing else 1
        width = backbone.dtype.itemsize
        if backbone.attn_implementation != "eager":
            return entries * (1 + kept * width)
        weights = 4 + (width if width < 4 else 0)  # the softmax is in float32
        return entries * (width + decoder.num_attention_heads * (kept * weights + 4 + width * training))

    def _predict(self, kind: str, groups: int, shape: tuple[int, int, int]) -> int:
        fitted = self._fitted(kind)
        linear = max(0, round(float(fitted[0] + fitted[1] * groups * self._tokens(shape))))
        return linear + self._mask(groups, shape, kind != "scoring")

    def _fitted(self, kind: str) -> Tensor:
        """Fit bytes, and bytes per token, of an ``update``, a ``warmup`` or of ``scoring`` without gradient; (2,)."""
        if kind not in self._fits:
            graphs = 2 if kind == "warmup" else 1
            rows, peaks = [], []
            if not self._fits:
                self._run(*_PROBES[0], False, 1)  # what is made once and stays is not part of a step
            for shape in _PROBES:
                rows.append([1.0, float(graphs * self._tokens(shape))])
                peak = peak_of(lambda: self._run(*shape, kind != "scoring", graphs), self.device)  # noqa: B023
                peaks.append([float(peak - graphs * self._mask(1, shape, kind != "scoring"))])
            matrix, target = (torch.tensor(m, dtype=torch.float64) for m in (rows, peaks))
            self._fits[kind] = torch.linalg.lstsq(matrix, target).solution[:, 0]
        return self._fits[kind]

    def _run(self, prompt: int, size: int, completion: int, training: bool, graphs: int) -> None:
        """Score groups of different rows through a head of a few ids, and differentiate.

        By ids, since in most families of images transitions have one length.
        """
        allowed = self.models.fwm.grammar.allowed[:4]
        model = self.models.fwm.probe(Grammar(allowed, completion))
        spread = [[allowed[n // 4**k % len(allowed)] for k in range(3)] for n in range(size)]
        rows = [row + [allowed[0]] * (completion - 3) for row in spread]
        prompts = [[allowed[0]] * prompt] * size
        scored = [model.score_ids(prompts, rows, group_size=size, training=training) for _ in range(graphs)]
        if training:  # as in training, after the switch back
            total = torch.stack([part.values.sum() for part in scored]).sum()
            torch.autograd.grad(total, self.module.adapters.parameters(model.adapter))
