"""Training of the tiny Gemma on a mixture of tasks, with one next-token loss for all."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import GemmaConfig, GemmaForCausalLM, PreTrainedTokenizerFast

from recipes.tiny_tasks import SEEN_WEIGHT, Sample, Tasks

Log = Callable[[str], None]


@dataclass(frozen=True)
class LMConfig:
    """Size of the model, and settings of its training; ``decay`` is the share of the steps in which the learning
    rate falls.
    """

    hidden: int = 128
    layers: int = 6
    heads: int = 4
    mlp: int = 384
    batch: int = 36
    chunk: int = 12
    steps: int = 4000
    learning_rate: float = 2e-3
    warmup: int = 100
    decay: float = 0.3
    weight_decay: float = 0.02
    ema: float = 0.998
    evaluate_every: int = 250
    save_every: int = 250


def build_lm(settings: LMConfig, tokenizer: PreTrainedTokenizerFast, codes: int) -> GemmaForCausalLM:
    """Make a Gemma whose last ``codes`` ids are VQ codes, as in Liquid."""
    config = GemmaConfig(
        vocab_size=len(tokenizer) + codes,
        hidden_size=settings.hidden,
        intermediate_size=settings.mlp,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        num_key_value_heads=settings.heads,
        head_dim=settings.hidden // settings.heads,
        max_position_embeddings=1024,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        tie_word_embeddings=True,
    )
    return GemmaForCausalLM(config)


def collate(samples: list[Sample], pad: int) -> tuple[Tensor, Tensor]:
    """Pad ids and loss weights on the right, (B, L) each; a causal model needs no mask for that."""
    length = max(len(s.ids) for s in samples)
    ids = torch.full((len(samples), length), pad)
    weights = torch.zeros(len(samples), length)
    for row, s in enumerate(samples):
        ids[row, : len(s.ids)] = torch.tensor(s.ids)
        weights[row, : len(s.ids)] = torch.tensor(s.weights)
    return ids, weights


def answer_logits(model: GemmaForCausalLM, ids: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Compute logits (K, V) and mask (B, L - 1) of the K weighted tokens; the head runs on those alone."""
    hidden = model.model(input_ids=ids[:, :-1], use_cache=False).last_hidden_state
    counted = weights[:, 1:] > 0
    return model.lm_head(hidden[counted]), counted


def backward(model: GemmaForCausalLM, samples: list[Sample], pad: int, chunk: int) -> float:
    """Accumulate the gradient of the weighted mean loss, in chunks of similar length."""
    samples = sorted(samples, key=lambda s: len(s.ids))
    total = sum(sum(s.weights) for s in samples)
    value = 0.0
    for start in range(0, len(samples), chunk):
        ids, weights = collate(samples[start : start + chunk], pad)
        logits, counted = answer_logits(model, ids, weights)
        losses = F.cross_entropy(logits, ids[:, 1:][counted], reduction="none")
        loss = (losses * weights[:, 1:][counted]).sum() / total
        loss.backward()
        value += loss.item()
    return value


@torch.no_grad()
def exact_match(model: GemmaForCausalLM, samples: list[Sample], pad: int) -> dict[str, float]:
    """Compute the share of samples, by task, whose whole answer is the greedy one."""
    right: dict[str, list[bool]] = {}
    for start in range(0, len(samples), 32):
        part = samples[start : start + 32]
        ids, weights = collate(part, pad)
        answers = torch.where(weights > SEEN_WEIGHT, weights, 0.0)
        logits, counted = answer_logits(model, ids, answers)
        wrong = torch.zeros_like(counted)
        wrong[counted] = logits.argmax(-1) != ids[:, 1:][counted]
        for sample, bad in zip(part, wrong.any(1).tolist(), strict=True):
            right.setdefault(sample.task, []).append(not bad)
    return {task: sum(hits) / len(hits) for task, hits in sorted(right.items())}


def learning_rate(step: int, settings: LMConfig) -> float:
    """Return the learning rate: linear warm-up, constant, then a linear fall over the last ``decay`` of the steps."""
    left = (settings.steps - step) / max(1.0, settings.decay * settings.steps)
    return settings.learning_rate * min(1.0, (step + 1) / settings.warmup, max(left, 0.01))


def train_lm(
    model: GemmaForCausalLM,
    tasks: Tasks,
    held_out: list[Sample],
    settings: LMConfig,
    pad: int,
    log: Log,
    save: Callable[[GemmaForCausalLM], None],
) -> GemmaForCausalLM:
    """Train ``model`` and return its moving average, in evaluation mode and frozen."""
    average = copy.deepcopy(model).eval().requires_grad_(False)
    decayed = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": plain, "weight_decay": 0.0}],
        betas=(0.9, 0.98),
    )
    model.train()
    start, running = time.monotonic(), math.nan
    for step in range(settings.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, settings)
        optimizer.zero_grad(set_to_none=True)
        loss = backward(model, [tasks.draw() for _ in range(settings.batch)], pad, settings.chunk)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        keep = min(settings.ema, (step + 1) / (step + 10))
        with torch.no_grad():
            for a, p in zip(average.parameters(), model.parameters(), strict=True):
                a.lerp_(p, 1 - keep)
        running = loss if math.isnan(running) else 0.98 * running + 0.02 * loss
        done = step + 1
        if done % 50 == 0:
            log(f"lm {done}/{settings.steps} loss {running:.4f} {time.monotonic() - start:.0f} s")
        if done % settings.evaluate_every == 0 or done == settings.steps:
            scores = exact_match(average, held_out, pad)
            log(f"lm {done} exact " + " ".join(f"{k} {v:.2f}" for k, v in scores.items()))
        if done % settings.save_every == 0:
            save(average)
    return average
