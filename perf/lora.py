"""Seconds of a linear layer with a LoRA adapter, forward and backward: PEFT's own modules beside ours.

python -m perf.lora --rows 3000 --threads 1
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from bitsandbytes.nn import Linear4bit
from peft import LoraConfig, inject_adapter_in_model
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from perf.runs import write_json
from swirl_lightning.engine.lora import fuse
from swirl_lightning.engine.quantization import prepare_quantized

SHAPES = ((128, 128), (128, 384), (576, 576), (576, 1536), (1536, 576), (2048, 8192))
"""(in, out) of layers of the embedded base, of SmolLM2-135M and of a model of some billions of parameters."""


def main(arguments: list[str] | None = None) -> None:
    """Measure both in turns, print the table, write the JSON."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    options.add_argument("--rows", type=int, default=3000, help="tokens that are multiplied at once")
    options.add_argument("--rank", type=int, default=16)
    options.add_argument("--repeats", type=int, default=7, help="the table shows medians")
    options.add_argument("--threads", type=int, default=os.cpu_count())
    options.add_argument("--json", type=Path, help="write all numbers here, too")
    chosen = options.parse_args(arguments)
    torch.set_num_threads(chosen.threads)
    table = Table("in", "out", "dtype", "PEFT, ms", "ours, ms", "ratio")
    found = []
    for inner, outer in SHAPES:
        for dtype in (torch.float32, torch.bfloat16):
            peft, ours = compare(inner, outer, dtype, chosen.rows, chosen.rank, chosen.repeats)
            found.append({"in": inner, "out": outer, "dtype": str(dtype), "peft": peft, "ours": ours})
            cells = (inner, outer, str(dtype).removeprefix("torch."), f"{peft * 1e3:.1f}", f"{ours * 1e3:.1f}")
            table.add_row(*map(str, cells), f"{peft / ours:.2f}")
    Console().print(table)
    write_json(chosen.json, {"threads": chosen.threads, "rows": chosen.rows, "rank": chosen.rank, "layers": found})


def compare(inner: int, outer: int, dtype: torch.dtype, rows: int, rank: int, repeats: int) -> tuple[float, float]:
    """Return median seconds (PEFT's modules, ours) of the same NF4 layer, weights kept dequantised."""
    layers = [layer(inner, outer, dtype, rank) for _ in range(2)]
    fuse(layers[1:])
    x = torch.randn(rows, inner, dtype=dtype, requires_grad=True)
    grad = torch.randn(rows, outer, dtype=dtype)
    seconds: list[list[float]] = [[], []]
    for number in range(repeats + 1):
        for own, taken in zip(layers, seconds, strict=True):
            spent = clocked(own, x, grad)
            if number:  # the first one dequantises
                taken.append(spent)
    return median(seconds[0]), median(seconds[1])


def layer(inner: int, outer: int, dtype: torch.dtype, rank: int) -> nn.Module:
    """Make PEFT's layer on an NF4 base whose weight is kept dequantised, as training on CPUs has it."""
    torch.manual_seed(0)
    base = nn.Sequential(Linear4bit(inner, outer, bias=False, compute_dtype=dtype, quant_type="nf4")).to("cpu")
    prepare_quantized(base, dequantize_once=True)
    inject_adapter_in_model(LoraConfig(r=rank, target_modules=["0"], init_lora_weights=False), base)
    return base[0]


def clocked(own: Callable[[Tensor], Tensor], x: Tensor, grad: Tensor) -> float:
    """Return the seconds of a forward and a backward pass."""
    began = time.perf_counter()
    own(x).backward(grad)
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
