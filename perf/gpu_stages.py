"""Stages of :mod:`perf.gpu_day`, each a process: ``python -m perf.gpu_stages STAGE DEVICE SCALE FOLDER``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from perf.gpu_liquid import decode, large, products, shipped, update
from perf.gpu_stage import GIB, Stage
from swirl_lightning import SWIRL, GRPOConfig, SamplingConfig
from swirl_lightning.callbacks import CollapseWatch, PhaseSwitch
from swirl_lightning.data import TransitionDataModule
from swirl_lightning.engine.grammar import Grammar
from swirl_lightning.engine.noise import uniforms
from swirl_lightning.transition import Transition


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
        for dtype, options in (
            ("bfloat16", {"cuda_graphs": True}),
            ("float32", {"quantization": None, "cuda_graphs": False}),
        ):
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
    return module.models.fwm.sample_ids(PROMPTS, noise, sampling, drafts).ids.cpu()


def parity(stage: Stage) -> None:
    """The device against the CPU: log-probabilities, gradients and sampled tokens."""
    from support.tiny import gemma_folder

    rows = [PROMPTS[n // 4] for n in range(8)]
    fixed = [[5 + (n * 7 + k * 3) % 200 for k in range(20 + n)] for n in range(8)]

    def run(device: str, dtype: str) -> tuple[Tensor, Tensor, Tensor]:
        module = _tiny(device, folder, dtype=dtype)
        name = module.adapters.names[0]
        scored = module.models.fwm.score_ids(rows, fixed, group_size=4, training=True)
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
                for options in (
                    {"cuda_graphs": False, "speculative": False},
                    {"cuda_graphs": True},
                    {"speculative": True},
                ):
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


STAGES = {
    stage.__name__: stage
    for stage in (environment, smoke, parity, graphs, decode, update, products, shipped, large, image, text, nccl)
}


if __name__ == "__main__":
    name, device, scale, out = sys.argv[1:]
    name, _, family = name.partition("_")
    stage = Stage(name, device, scale == "small", Path(out))
    smoke_family(stage, family) if family else STAGES[name](stage)
