"""Stages of :mod:`perf.gpu_day`, each a process: ``python -m perf.gpu_stages STAGE DEVICE SCALE FOLDER``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

import torch
from bitsandbytes.nn import Linear4bit, Params4bit
from lightning.pytorch import Callback, Trainer
from torch import Tensor

from perf.big import LIQUID, REHEARSED, liquid
from perf.common import Case, Pairs
from perf.floor import NF4_BYTES, Floor, Rates, measure
from perf.gpu_day import write
from swirl_lightning import SWIRL, GRPOConfig, SamplingConfig
from swirl_lightning.callbacks import CollapseWatch, PhaseSwitch
from swirl_lightning.data import TransitionDataModule
from swirl_lightning.engine import vocabulary
from swirl_lightning.engine.grammar import Grammar
from swirl_lightning.engine.noise import uniforms
from swirl_lightning.roles import Role
from swirl_lightning.rollout_engines import Generate
from swirl_lightning.transition import Transition

GIB = 2**30
QUIET = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False)


@dataclass(frozen=True)
class Stage:
    """One stage: where it runs, and where its numbers go."""

    name: str
    device: str
    small: bool
    out: Path

    @property
    def on_gpu(self) -> bool:
        """Whether it measures, and is no rehearsal."""
        return self.device == "cuda"

    def say(self, what: str, value: Any, wanted: Any = "") -> None:
        """Append a number, or a word, to the results."""
        value = float(f"{value:.4g}") if isinstance(value, float) else value
        write(self.out / "results.jsonl", stage=self.name, what=what, value=value, wanted=wanted)

    @contextmanager
    def part(self, what: str) -> Iterator[None]:
        """Make a failure within a line of the table; the stage goes on."""
        try:
            yield
        except Exception as error:
            traceback.print_exc()
            self.say(what, f"FAILED {type(error).__name__}: {str(error)[:200]}", "no failure")
        if self.on_gpu:
            torch.cuda.empty_cache()

    def seconds(self, call: Callable[[], object], repeats: int = 3) -> float:
        """Time a call: the median of some, after one that is not counted."""
        times = []
        for _ in range(1 + repeats):
            self._wait()
            began = time.perf_counter()
            call()
            self._wait()
            times.append(time.perf_counter() - began)
        return median(times[1:])

    def peak(self, call: Callable[[], object]) -> float:
        """Measure the allocator's peak within a call, in GiB; NaN on CPUs."""
        if not self.on_gpu:
            return float("nan")
        torch.cuda.reset_peak_memory_stats()
        call()
        return torch.cuda.max_memory_allocated() / GIB

    def trainer(self, folder: Path, *callbacks: Callback, **options: Any) -> Trainer:
        """Make a Trainer on the device, that prints and keeps nothing."""
        accelerator = "gpu" if self.on_gpu else "cpu"
        return Trainer(
            accelerator=accelerator, devices=1, default_root_dir=folder, callbacks=list(callbacks), **(QUIET | options)
        )

    def rates(self, dtype: str) -> Rates:
        """Measure products and copies; in a rehearsal in float32, since bfloat16 takes CPUs minutes."""
        return measure(self.device, dtype if self.on_gpu else "float32", torch.get_num_threads())

    def _wait(self) -> None:
        if self.on_gpu:
            torch.cuda.synchronize()


def environment(stage: Stage) -> None:
    """Versions, the card, and what it computes and copies in a second."""
    for name in ("torch", "transformers", "peft", "bitsandbytes", "lightning", "trl", "triton"):
        with stage.part(name):
            try:
                stage.say(name, version(name))
            except PackageNotFoundError:
                stage.say(name, "not installed")
    if stage.on_gpu:
        stage.say("card", torch.cuda.get_device_name())
        stage.say("memory, GiB", torch.cuda.get_device_properties(0).total_memory / GIB)
    for dtype in ("float32", "bfloat16")[: 2 if stage.on_gpu else 1]:
        rates = stage.rates(dtype)
        stage.say(f"{dtype} product, TFLOP/s", rates.flops / 1e12)
        stage.say("copy, TB/s read and written", rates.bytes / 1e12)


def smoke(stage: Stage) -> None:
    """Every family through warm-up, Phase I, Phase II, test and prediction, in NF4 with graphs, and plain."""
    from support.tiny_families import FAMILIES

    def run(name: str) -> None:
        line = [sys.executable, "-m", "perf.gpu_stages", f"smoke_{name}", stage.device, "full", str(stage.out)]
        if code := subprocess.run(line).returncode:
            stage.say(f"{name}", f"FAILED: exit code {code}", "no failure")

    with ThreadPoolExecutor(max(1, (os.cpu_count() or 1) // 2)) as pool:  # most of it is Python, one core each
        list(pool.map(run, list(FAMILIES)[: 2 if stage.small else None]))


def smoke_family(stage: Stage, name: str) -> None:
    """One family of :func:`smoke`, in a process of its own."""
    from support.tiny_families import FAMILIES

    with tempfile.TemporaryDirectory() as room:
        (empty := Path(room, name)).mkdir()
        folder = FAMILIES[name].write(empty)
        for dtype, options in (("bfloat16", {"cuda_graphs": True}), ("float32", {"quantization": None})):
            with stage.part(f"{name} {dtype}"):
                stage.say(f"{name} {dtype}", f"{_smoke(stage, name, folder, dtype=dtype, **options):.1f} s", "runs")


class _Few(TransitionDataModule):
    """Four transitions of a family."""

    def __init__(self, family: str) -> None:
        super().__init__(batch_size=2, pairs_per_step=4)
        self.family = family

    def load_split(self, split: str) -> list[Transition]:
        from support.tiny_families import FAMILIES

        states = FAMILIES[self.family].states(8)
        return [Transition(states[n], states[4 + n], f"go {n % 3}", id=f"{split}{n}") for n in range(4)]


def _smoke(stage: Stage, name: str, folder: Path, **options: Any) -> float:
    from support.tiny_families import backbone_of

    began = time.time()
    module = SWIRL(
        backbone_of(name, folder, gradient_checkpointing=True, **options),
        grpo=GRPOConfig(group_size=4),
        sampling=SamplingConfig(1.0, 0.9),
        max_tokens_per_forward=200,
        max_cached_tokens=600,
    )
    run = stage.trainer(folder, PhaseSwitch(1, iterations=1), CollapseWatch(), num_sanity_val_steps=0)
    data = _Few(name)
    run.fit(module, data)
    run.test(module, data, verbose=False)
    run.predict(module, data, return_predictions=False)
    return time.time() - began


PROMPTS = [[2, *range(10, 40), 50], [2, *range(10, 34)]]


def _tiny(device: str, folder: Path, **options: Any) -> SWIRL:
    """SWIRL on a tiny Gemma with adapters that differ from one another."""
    from support.tiny import text_backbone

    backbone = text_backbone(folder, max_state_tokens=40, max_action_tokens=5, dequantize_once=False, **options)
    module = SWIRL(backbone, grpo=GRPOConfig(group_size=4))
    module.configure_model()
    generator = torch.Generator().manual_seed(1)
    for name in module.adapters.names:
        for parameter in module.adapters.parameters(name):
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return module.to(device)


def _drawn(module: SWIRL, drafts: Sequence[list[int]] = ()) -> Tensor:
    noise, sampling = uniforms(["a", "b"], 4, 40), SamplingConfig(1.0, 0.95)
    return module.models.sample(Role.FWM, module.adapters.names[0], PROMPTS, noise, sampling, drafts).ids.cpu()


def parity(stage: Stage) -> None:
    """The device against the CPU: log-probabilities, gradients and sampled tokens."""
    from support.tiny import gemma_folder

    rows = [PROMPTS[n // 4] for n in range(8)]
    fixed = [[5 + (n * 7 + k * 3) % 200 for k in range(20 + n)] for n in range(8)]

    def run(device: str, dtype: str) -> tuple[Tensor, Tensor, Tensor]:
        module = _tiny(device, folder, dtype=dtype)
        name = module.adapters.names[0]
        scored = module.models.score("fwm", name, rows, fixed, group_size=4, training=True)
        gradients = torch.autograd.grad(scored.values.sum(), module.adapters.parameters(name))
        return _drawn(module), scored.values.detach().cpu(), torch.cat([g.flatten().cpu() for g in gradients])

    with tempfile.TemporaryDirectory() as room:
        folder = gemma_folder(Path(room))
        for dtype, near, slope in (("float32", 1e-4, 1e-3), ("bfloat16", 0.15, 0.1)):
            with stage.part(dtype):
                ids, values, gradient = run("cpu", dtype)
                there_ids, there, there_gradient = run(stage.device, dtype)
                width = min(ids.shape[1], there_ids.shape[1])
                same = (ids[:, :width] == there_ids[:, :width]).float().mean()
                stage.say(f"{dtype}: log-probability, largest gap", float((values - there).abs().max()), f"< {near}")
                relative = (gradient - there_gradient).norm() / gradient.norm()
                stage.say(f"{dtype}: gradient, relative gap", float(relative), f"< {slope}")
                stage.say(f"{dtype}: share of equal tokens", float(same), 1.0 if dtype == "float32" else "")


def graphs(stage: Stage) -> None:
    """Replayed decode steps, and passes over drafts, against steps that are launched one by one: the same tokens."""
    from support.tiny import gemma_folder

    with tempfile.TemporaryDirectory() as room:
        folder = gemma_folder(Path(room))
        for dtype in ("float32", "bfloat16"):
            with stage.part(dtype), warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                found = []
                for options in ({"speculative": False}, {"cuda_graphs": True}, {"speculative": True}):
                    module = _tiny(stage.device, folder, dtype=dtype, **options)
                    module.backbone.state_grammar = Grammar((1, *range(10, 20)), 40, 1)  # short: rows leave
                    drafts = [row[row != 0].tolist() for row in found[0][::4]] if found else []
                    found.append(_drawn(module, drafts))
                steps, replayed, drafted = found
                same = [steps.shape == other.shape and torch.equal(steps, other) for other in (replayed, drafted)]
                stage.say(f"{dtype}: equal tokens", same[0], True)
                # a pass of several tokens may round otherwise than a step
                stage.say(f"{dtype}: equal tokens from drafts", same[1], True if dtype == "float32" else "")
                refused = [str(w.message)[:120] for w in said if "not replayed" in str(w.message)]
                stage.say(f"{dtype}: captures refused", refused[0] if refused else 0, 0)


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
        module.models.sample(Role.FWM, module.adapters.names[0], prompts, noise, module.sampling)

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
    models, name = module.models, module.adapters.names[0]
    models.engine.config = replace(models.engine.config, shared_attention=shared)
    allowed = models.grammars["fwm"].allowed
    prompts = [[allowed[n % len(allowed)] for n in range(case.prompt)]] * 8
    completions = [[allowed[(n * 31 + k * 7) % len(allowed)] for k in range(case.completion)] for n in range(8)]

    def score() -> None:
        with torch.no_grad():
            models.score("fwm", name, prompts, completions, group_size=8)

    def learn() -> None:
        models.score("fwm", name, prompts, completions, group_size=8, training=True).values.sum().backward()
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
            vocabulary.LOGITS_PER_CHUNK = vocabulary.LOGITS_PER_CHUNK_ON_GPUS = size
            took = stage.seconds(partial(_judge, cut, hidden, ids))
            stage.say(f"head of {rows}, {tokens} tokens, {size >> 20} Mi logits a chunk: ms", took * 1e3)


def _judge(cut: vocabulary.VocabularySlice, hidden: Tensor, ids: Tensor) -> None:
    cut.log_probs(hidden, ids)[0].sum().backward()


def _often(call: Callable[[], object], times: int) -> None:
    for _ in range(times):
        call()


class _Watch(Callback):
    """Seconds of each optimiser step, and its peak."""

    def __init__(self, stage: Stage) -> None:
        self.stage, self.began, self.steps = stage, 0.0, 0

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
            self.stage.say(f"{phase}: peak, GiB", torch.cuda.max_memory_allocated() / GIB, "< 23.5")
            self.stage.say(f"{phase}: reserved, GiB", torch.cuda.max_memory_reserved() / GIB)


def shipped(stage: Stage) -> None:
    """A step of both phases as configs/liquid_iterative.yaml has them, with the memory of a card of 24 GB."""
    if stage.on_gpu:
        there = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, 23.5 * GIB / there))
    # what follows from the memory by default looks at the whole card's
    _both_phases(stage, 2, False, max_tokens_per_forward=10240, max_cached_tokens=20480)


def large(stage: Stage) -> None:
    """The same with the memory of a card of 80 GB: dense weights, and more rollouts at a time."""
    _both_phases(stage, 14, None, max_tokens_per_forward=10240, max_cached_tokens=131072)


def _both_phases(stage: Stage, pairs: int, dequantize_once: bool | None, **budgets: int) -> None:
    case = REHEARSED if stage.small else LIQUID
    with stage.part("both phases"), tempfile.TemporaryDirectory() as room:
        options = {"gradient_checkpointing": True, "dequantize_once": dequantize_once}
        module = liquid(stage.device, stage.small, options, **budgets)
        data = Pairs(replace(case, pairs=pairs))
        data.batch_size, data.pairs_per_step = 1, pairs
        run = stage.trainer(
            Path(room), PhaseSwitch(0, iterations=1), _Watch(stage), limit_val_batches=0, gradient_clip_val=1.0
        )
        run.fit(module, data)


def _step(stage: Stage, case: str, methods: list[str]) -> None:
    """Run :mod:`perf.step`, each method on its own: one that fails does not take the others along."""
    for method in methods:
        with stage.part(f"{case} {method}"):
            target = stage.out / f"{case}-{method}.json"
            scale = ["--scale", "small"] if stage.small else []
            options = ["--case", case, "--device", stage.device, "--dtype", "bfloat16", "--repeats", "1"]
            command = [sys.executable, "-m", "perf.step", *options, "--methods", method, "--json", str(target), *scale]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise RuntimeError(done.stderr[-300:])
            for row in json.loads(target.read_text())["rows"]:
                seconds = ", ".join(f"{part} {value:.2f}" for part, value in row["seconds"].items())
                stage.say(f"{method}, {row['phase']}: s", seconds)
                stage.say(f"{method}, {row['phase']}: tokens/s", row["tokens_per_second"])
                stage.say(f"{method}, {row['phase']}: peak above the model, GiB", row["peak_bytes"] / GIB)


def image(stage: Stage) -> None:
    """perf.step, case image: ours and plain."""
    _step(stage, "image", ["ours", "plain"])


def text(stage: Stage) -> None:
    """perf.step, case text: ours, plain and TRL."""
    _step(stage, "text", ["ours", "plain", "trl"])


def nccl(stage: Stage) -> None:
    """One rank in a process group: graphs beside its watchdog, and collectives on tensors of the device."""
    from support.tiny_families import FAMILIES

    backend = "nccl" if stage.on_gpu else "gloo"
    torch.distributed.init_process_group(backend, init_method="tcp://127.0.0.1:29533", rank=0, world_size=1)
    with tempfile.TemporaryDirectory() as room, stage.part("fit"):
        folder = FAMILIES["text"].write(Path(room))
        stage.say("fit", f"{_smoke(stage, 'text', folder, dtype='bfloat16', cuda_graphs=True):.1f} s", "runs")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    name, device, scale, out = sys.argv[1:]
    name, _, family = name.partition("_")
    stage = Stage(name, device, scale == "small", Path(out))
    smoke_family(stage, family) if family else globals()[name](stage)
