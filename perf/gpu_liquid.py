"""Stages of :mod:`perf.gpu_day` on the class of Liquid-7B: decode steps, updates, layers, and both phases."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from bitsandbytes.nn import Linear4bit, Params4bit
from lightning.pytorch import Callback, Trainer
from torch import Tensor

from perf.big import LIQUID, REHEARSED, liquid
from perf.common import Case, Pairs
from perf.floor import NF4_BYTES, Floor
from perf.gpu_stage import GIB, Stage
from swirl_lightning import SWIRL
from swirl_lightning.callbacks import PhaseSwitch
from swirl_lightning.engine import vocabulary
from swirl_lightning.engine.grammar import Grammar
from swirl_lightning.engine.noise import uniforms
from swirl_lightning.rollout_engines import Generate


def decode(stage: Stage) -> None:
    """Liquid-7B: a decode step of the FWM by rows, against transformers' ``generate`` and the floor."""
    case = REHEARSED if stage.small else LIQUID
    steps = (4, 12) if stage.small else (16, 64)
    rates = stage.rates(case.dtype)
    counts = (8,) if stage.small else (8, 64, 112)
    kinds: tuple[tuple[str, dict[str, Any], tuple[int, ...]], ...] = (
        ("dense", {"dequantize_once": True, "cuda_graphs": True}, counts),
        ("NF4", {"dequantize_once": False, "cuda_graphs": True}, counts[:2]),
        ("dense, no graphs", {"dequantize_once": True, "cuda_graphs": False}, counts[:2][-1:]),
        ("generate", {}, counts[:1]),
    )
    for rows in counts:
        for kind, size in (("NF4", NF4_BYTES), ("dense", 2.0)):
            few, many = (
                Floor(replace(case, pairs=rows // 8, completion=length), rates, size).seconds()["fwm"]["sample"]
                for length in steps
            )
            stage.say(f"floor, {kind}, {rows} rows: ms a step", 1e3 * (many - few) / (steps[1] - steps[0]))
    for kind, options, sizes in kinds:
        with stage.part(kind):
            engine = Generate(256) if kind == "generate" else None
            module = liquid(stage.device, stage.small, options, rollout_engine=engine, max_cached_tokens=1 << 18)
            for rows in sizes:
                with stage.part(f"{kind}, {rows} rows"):
                    _say_step(stage, f"{kind}, {rows} rows", *(_sampling(module, rows, n, case) for n in steps), steps)
            if kind == "dense":
                rows = counts[:2][-1]
                spent = stage.seconds(_sampling(module, rows, case.completion, case), 1)
                stage.say(f"{kind}, {rows} rows of {case.completion} tokens: s", spent)
            module = None  # before the next one is built


def _sampling(module: SWIRL, rows: int, length: int, case: Case) -> Callable[[], object]:
    """Sample ``length`` tokens for some rows, eight a prompt."""
    allowed = module.models.grammars["fwm"].allowed
    prompts = [[allowed[(n + k) % len(allowed)] for k in range(case.prompt)] for n in range(rows // 8)]
    noise = uniforms([str(n) for n in range(rows // 8)], 8, length)

    def call() -> None:
        module.backbone.state_grammar = Grammar(allowed, length)
        module.models.fwm.sample_ids(prompts, noise, module.sampling)

    return call


def _say_step(
    stage: Stage, what: str, few: Callable[[], object], many: Callable[[], object], steps: tuple[int, int]
) -> None:
    """Say what a decode step takes: prompts and captures are in both calls, and not in their difference."""
    more = steps[1] - steps[0]
    short, long = stage.seconds(few, 2), stage.seconds(many, 2)
    stage.say(f"{what}: ms a step", 1e3 * (long - short) / more)
    before, after = _kernels(stage, few), _kernels(stage, many)
    spent = {}
    for name, (ms, count) in after.items():
        was_ms, was_count = before.get(name, (0.0, 0.0))
        spent[name] = (ms - was_ms) / more, (count - was_count) / more
    _say_kernels(stage, what, spent, 8)


def _kernels(stage: Stage, call: Callable[[], object]) -> dict[str, tuple[float, float]]:
    """Run a call under the profiler: milliseconds of the device and launches by kernel; nothing on CPUs."""
    if not stage.on_gpu:
        return {}
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        call()
        torch.cuda.synchronize()
    rows = [row for row in profile.key_averages() if row.self_device_time_total > 0]  # the others are launches
    return {row.key: (row.self_device_time_total / 1e3, row.count) for row in rows}


def _say_kernels(stage: Stage, what: str, spent: Mapping[str, tuple[float, float]], most: int) -> None:
    """Say which kernels took most of the device's time."""
    if spent:
        stage.say(f"{what}: ms of kernels", sum(ms for ms, _ in spent.values()))
        stage.say(f"{what}: number of kernels", sum(count for _, count in spent.values()))
    for place, name in enumerate(sorted(spent, key=lambda name: -spent[name][0])[:most]):
        ms, count = spent[name]
        stage.say(f"{what}: kernel {place + 1}", f"{ms:.3f} ms, {count:.1f} times: {name[:90]}")


def update(stage: Stage) -> None:
    """Liquid-7B: scoring and update of a group of Phase I, with the prompt shared and without, against the floor."""
    case = REHEARSED if stage.small else LIQUID
    floor = Floor(case, stage.rates(case.dtype)).seconds()["fwm"]
    stage.say("floor: score, s", floor["reference"])
    stage.say("floor: update, s", floor["policy update"])
    for kind, shared, once in (("dense", True, True), ("NF4", True, False), ("NF4, plain: whole rows", False, False)):
        with stage.part(kind):
            _say_update(stage, case, kind, shared, {"gradient_checkpointing": True, "dequantize_once": once})


def _say_update(stage: Stage, case: Case, kind: str, shared: bool, options: dict[str, Any]) -> None:
    """Say what the scoring and the update of a group take, and which kernels."""
    module = liquid(stage.device, stage.small, options)
    models = module.models
    models.engine.config = replace(models.engine.config, shared_attention=shared)
    allowed = models.grammars["fwm"].allowed
    prompts = [[allowed[n % len(allowed)] for n in range(case.prompt)]] * 8
    completions = [[allowed[(n * 31 + k * 7) % len(allowed)] for k in range(case.completion)] for n in range(8)]

    def score() -> None:
        with torch.no_grad():
            models.fwm.score_ids(prompts, completions, group_size=8)

    def learn() -> None:
        models.fwm.score_ids(prompts, completions, group_size=8, training=True).values.sum().backward()
        module.zero_grad()

    stage.say(f"{kind}: score, s", stage.seconds(score, 2))
    stage.say(f"{kind}: update, s", stage.seconds(learn, 2))
    stage.say(f"{kind}: peak of the update, GiB", stage.peak(learn), "< 20 without the optimiser" if shared else "")
    if shared:
        _say_kernels(stage, f"{kind}: update", _kernels(stage, learn), 14)


def products(stage: Stage) -> None:
    """A linear layer of Liquid-7B in NF4 and dense, and the head in chunks of several sizes: what to choose when."""
    case = REHEARSED if stage.small else LIQUID
    wide, narrow = case.intermediate, case.hidden
    for tokens in (1, 8, 64) if stage.small else (1, 8, 16, 64, 112, 256, 1024, 9216):
        for before, after in ((narrow, narrow), (narrow, wide), (wide, narrow)):
            x = torch.randn(tokens, before, device=stage.device, dtype=torch.bfloat16)
            dense = torch.randn(after, before, device=stage.device, dtype=torch.bfloat16) * 0.02
            packed = Linear4bit(before, after, bias=False, compute_dtype=torch.bfloat16, quant_type="nf4")
            packed.weight = Params4bit(dense.clone(), requires_grad=False, quant_type="nf4", compress_statistics=True)
            packed = packed.to(stage.device)
            with torch.no_grad():
                runs = ("NF4", partial(packed, x)), ("dense", partial(torch.nn.functional.linear, x, dense))
                spent = {kind: stage.seconds(partial(_often, call, 20)) / 20 * 1e3 for kind, call in runs}
            said = ", ".join(f"{kind} {value:.4f} ms" for kind, value in spent.items())
            stage.say(f"{tokens} tokens, {before} to {after}", said)
    tokens, chunk = (64, 1 << 10) if stage.small else (8192, 1 << 22)
    for rows in (case.codes, case.vocabulary):
        head = torch.nn.Linear(case.hidden, rows, bias=False, device=stage.device, dtype=torch.bfloat16)
        cut = vocabulary.VocabularySlice(head.requires_grad_(False), range(rows))
        hidden = torch.randn(tokens, case.hidden, device=stage.device, dtype=torch.bfloat16, requires_grad=True)
        ids = torch.arange(tokens, device=stage.device) % rows
        for size in (chunk, 4 * chunk, 16 * chunk, 64 * chunk):
            with patch.multiple(vocabulary, LOGITS_PER_CHUNK=size, LOGITS_PER_CHUNK_ON_GPUS=size):
                took = stage.seconds(partial(_judge, cut, hidden, ids))
            stage.say(f"head of {rows}, {tokens} tokens, {size >> 20} Mi logits a chunk: ms", took * 1e3)


def _judge(cut: vocabulary.VocabularySlice, hidden: Tensor, ids: Tensor) -> None:
    cut.log_probs(hidden, ids)[0].sum().backward()


def _often(call: Callable[[], object], times: int) -> None:
    for _ in range(times):
        call()


class _Watch(Callback):
    """Seconds of each optimiser step, and its peak."""

    def __init__(self, stage: Stage, card: float) -> None:
        self.stage, self.card, self.began, self.steps = stage, card, 0.0, 0

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch.window:
            self.began = time.time()
            if self.stage.on_gpu:
                torch.cuda.reset_peak_memory_stats()

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
        if trainer.global_step == self.steps:
            return
        self.steps = trainer.global_step
        phase, pairs = pl_module.phase.name, trainer.accumulate_grad_batches
        self.stage.say(f"{phase}: s a pair", (time.time() - self.began) / pairs)
        if self.stage.on_gpu:
            self.stage.say(f"{phase}: peak, GiB", torch.cuda.max_memory_allocated() / GIB, f"< {self.card}")
            self.stage.say(f"{phase}: reserved, GiB", torch.cuda.max_memory_reserved() / GIB)


def shipped(stage: Stage) -> None:
    """A step of both phases as configs/liquid_iterative.yaml has them, with the memory of a card of 24 GB."""
    # what follows from the memory by default looks at the whole card's
    _both_phases(stage, 2, False, 23.5, max_tokens_per_forward=10240, max_cached_tokens=20480)


def large(stage: Stage) -> None:
    """The same with the memory of a card of 80 GB: dense weights, and more rollouts at a time."""
    _both_phases(stage, 14, None, 79.0, max_tokens_per_forward=10240, max_cached_tokens=131072)


def _both_phases(stage: Stage, pairs: int, dequantize_once: bool | None, card: float, **budgets: int) -> None:
    if stage.on_gpu:
        there = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, card * GIB / there))
    case = REHEARSED if stage.small else LIQUID
    with stage.part("both phases"), tempfile.TemporaryDirectory() as room:
        options = {"gradient_checkpointing": True, "dequantize_once": dequantize_once}
        module = liquid(stage.device, stage.small, options, **budgets)
        data = Pairs(replace(case, pairs=pairs))
        data.batch_size, data.pairs_per_step = 1, pairs
        run = stage.trainer(
            Path(room), PhaseSwitch(0, iterations=1), _Watch(stage, card), limit_val_batches=0, gradient_clip_val=1.0
        )
        run.fit(module, data)
