"""Perplexity under small causal models, against a computation of its own: text by text, token by token, in float64."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

from support.tiny import byte_tokenizer, gemma_folder
from swirl_lightning.metrics.perplexity import perplexity

TEXTS = ["turn left", "go", "pick up the red key", "é", "go", " \n"]


def gpt2_folder(folder, positions=32):
    """A GPT-2 with random weights that reads ``positions`` tokens, and no start token."""
    tokenizer = byte_tokenizer()
    tokenizer.bos_token = None
    torch.manual_seed(1)
    size = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": positions, "vocab_size": len(tokenizer)}
    GPT2LMHeadModel(GPT2Config(**size, initializer_range=0.5, bos_token_id=1, eos_token_id=1)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def by_hand(folder, texts, start, longest=1000):
    network = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    surprise, count = 0.0, 0
    for text in texts:
        ids = [start, *tokenizer(text, add_special_tokens=False)["input_ids"]][:longest]
        for n in range(1, len(ids)):  # each prefix in a forward pass of its own
            with torch.no_grad():
                logits = network(torch.tensor([ids[:n]])).logits[0, -1]
            surprise -= math.log(logits.softmax(-1)[ids[n]])
            count += 1
    return math.exp(surprise / count), count


@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_it_is_what_a_loop_over_tokens_gives(tmp_path, batch_size):
    folder = gemma_folder(tmp_path)
    wanted, count = by_hand(folder, TEXTS[:-1], start=2)
    assert count == sum(len(text.encode()) for text in TEXTS[:-1])  # a token a byte; the blank text does not count
    assert wanted > 300  # far from uniform over the vocabulary of 259
    assert perplexity(str(folder), TEXTS, batch_size=batch_size) == pytest.approx(wanted, rel=1e-4)


def test_gpt2_starts_with_its_end_token_and_reads_so_far(tmp_path):
    folder = gpt2_folder(tmp_path, positions=8)
    wanted, count = by_hand(folder, TEXTS[:-1], start=1, longest=8)
    assert count == 7 + 2 + 7 + 2 + 2
    assert perplexity(str(folder), TEXTS) == pytest.approx(wanted, rel=1e-4)


def test_without_a_token_there_is_none(tmp_path):
    assert perplexity(str(gemma_folder(tmp_path)), ["", " "]) is None
