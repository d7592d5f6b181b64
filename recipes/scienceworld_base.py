"""A small base for ScienceWorld that needs no download: tokenizer and Gemma language model.

    python -m recipes.scienceworld_base --data data/scienceworld --out runs/scienceworld_base

The language model is trained to continue one state with the next, never with an action beside them. So it is
neither an FWM nor an IDM. Only training episodes are read; actions are read as words alone, from the labelled half.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import GemmaConfig, GemmaForCausalLM, PreTrainedTokenizerFast

from swirl_lightning.benchmarks.scienceworld import ScienceWorld
from swirl_lightning.console.options import OneLineParser
from swirl_lightning.console.run import run_command
from swirl_lightning.transition import Transition

# The last three are unused. Without them all ids would change, and with them the numbers in docs/results.md.
SPECIALS = ("<pad>", "<eos>", "<bos>", "<unk>", "<cls>", "<sep>", "<mask>")
PAD, EOS, BOS = range(3)

Log = Callable[[str], None]


@dataclass(frozen=True)
class BaseConfig:
    """Sizes of the base, and settings of its training.

    Attributes:
        vocabulary: of the byte-level BPE.
        hidden, layers, heads: of the language model; its MLP is three times as wide as it.
        longest: number of tokens of a pair of states; longer ones are cut at the end.
        batch: number of sequences in a step.
        steps: number of training steps.
        learning_rate: highest learning rate.
    """

    vocabulary: int = 2048
    hidden: int = 128
    layers: int = 4
    heads: int = 4
    longest: int = 256
    batch: int = 16
    steps: int = 2000
    learning_rate: float = 2e-3


def build_tokenizer(texts: list[str], size: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE, which restores any text exactly; merges cross words but not lines, for short states."""
    core = Tokenizer(models.BPE(unk_token=None))
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split("\n", "merged_with_next"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(SPECIALS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    core.train_from_iterator(texts, trainer)
    names = ("pad_token", "eos_token", "bos_token", "unk_token", "cls_token", "sep_token", "mask_token")
    return PreTrainedTokenizerFast(
        tokenizer_object=core, clean_up_tokenization_spaces=False, **dict(zip(names, SPECIALS, strict=True))
    )


def next_state_batches(pairs: list[tuple[list[int], list[int]]], settings: BaseConfig, seed: int) -> Iterator[Tensor]:
    """Yield batches (B, L) without end: BOS, a state, two line breaks, the next state, EOS; padded on the right."""
    rows = [[BOS, *x, *y, EOS][: settings.longest] for x, y in pairs]
    return map(_padded, _of_like_length(rows, settings.batch, random.Random(seed)))


def train(model: nn.Module, losses: Iterator[Tensor], steps: int, learning_rate: float, name: str, log: Log) -> None:
    """Train with AdamW: 5% warm-up, then a cosine to a tenth of the learning rate."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.02)
    start, mean = time.monotonic(), math.nan
    for step in range(steps):
        up = min(1.0, (step + 1) / max(0.05 * steps, 1))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * up * (0.55 + 0.45 * math.cos(math.pi * step / steps))
        loss = next(losses)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        mean = loss.item() if math.isnan(mean) else 0.98 * mean + 0.02 * loss.item()
        if (step + 1) % 50 == 0 or step + 1 == steps:
            log(f"{name} {step + 1}/{steps} loss {mean:.3f}, {(time.monotonic() - start) / (step + 1):.2f} s a step")


def build(data: ScienceWorld, out: Path, settings: BaseConfig, seed: int, log: Log) -> None:
    """Write the base into ``out``."""
    torch.manual_seed(seed)
    labelled, unlabelled = data.split("warmup"), data.split("state_only")
    rows: list[Transition] = [*labelled, *unlabelled]
    states = sorted({str(state) for row in rows for state in (row.before, row.observed)})
    tokenizer = build_tokenizer([*states, *sorted({row.action or "" for row in labelled})], settings.vocabulary)
    out.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(out)
    ids = {state: tokenizer.encode(state, add_special_tokens=False) for state in states}
    lengths = sorted(map(len, ids.values()))
    log(f"{len(states)} states, tokens: median {lengths[len(lengths) // 2]}, longest {lengths[-1]}")

    between = tokenizer.encode("\n\n", add_special_tokens=False)
    pairs = [(ids[str(row.before)] + between, ids[str(row.observed)]) for row in rows]
    model = build_lm(len(tokenizer), settings)
    log(f"language model: {model.num_parameters():,} parameters")
    batches = next_state_batches(pairs, settings, seed)
    train(model, (_next_token_loss(model, b) for b in batches), settings.steps, settings.learning_rate, "lm", log)
    model.save_pretrained(out)


def build_lm(vocabulary: int, settings: BaseConfig) -> GemmaForCausalLM:
    """Make a small Gemma with random weights."""
    return GemmaForCausalLM(
        GemmaConfig(
            vocab_size=vocabulary,
            hidden_size=settings.hidden,
            intermediate_size=3 * settings.hidden,
            num_hidden_layers=settings.layers,
            num_attention_heads=settings.heads,
            num_key_value_heads=settings.heads,
            head_dim=settings.hidden // settings.heads,
            max_position_embeddings=2 * settings.longest,
            pad_token_id=PAD,
            bos_token_id=BOS,
            eos_token_id=EOS,
            tie_word_embeddings=True,
        )
    )


def _next_token_loss(model: GemmaForCausalLM, ids: Tensor) -> Tensor:
    logits = model(input_ids=ids[:, :-1], use_cache=False).logits  # (B, L - 1, V)
    return F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), ignore_index=PAD)


def _of_like_length(rows: list[list[int]], size: int, draw: random.Random) -> Iterator[list[list[int]]]:
    """Yield batches of similar lengths without end: of random ones two thirds would be padding."""
    rows = sorted(rows, key=len)
    while True:
        start = draw.randrange(max(1, len(rows) - size + 1))
        yield rows[start : start + size]


def _padded(rows: list[list[int]]) -> Tensor:
    width = max(map(len, rows))
    return torch.tensor([row + [PAD] * (width - len(row)) for row in rows])


def main(args: list[str] | None = None) -> None:
    """Entry point of the command."""
    parser = OneLineParser(prog="python -m recipes.scienceworld_base", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", required=True, help="folder with gold_transitions.jsonl")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--steps", type=int, default=BaseConfig.steps, help="of the training")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    options = parser.parse_args(args)
    torch.set_num_threads(options.threads)
    settings = BaseConfig(steps=options.steps)
    start = time.monotonic()
    data = ScienceWorld(options.data)
    data.check()
    build(data, options.out, settings, options.seed, lambda text: print(f"{time.monotonic() - start:6.0f} s  {text}"))


if __name__ == "__main__":
    run_command(main)
