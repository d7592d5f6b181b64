"""Decoding from drafts, against the plain path: the same tokens, in fewer passes."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
import torch

from support.plain_rollouts import Counting, plain_rollouts
from support.tiny import text_backbone
from swirl_lightning.engine.attention import install
from swirl_lightning.engine.config import EngineConfig
from swirl_lightning.engine.drawing import GREEDY, SamplingConfig
from swirl_lightning.engine.engine import Engine
from swirl_lightning.engine.grammar import Grammar
from swirl_lightning.engine.noise import uniforms

PROMPTS = [[2, 40, 41], [2, 50, 51, 52, 53, 54, 55, 56], [2, 99]]


@pytest.fixture(scope="module")
def model(gemma_path):
    model = text_backbone(gemma_path, quantization=None).load_model().eval()
    assert install(model)
    return model


def engine_of(model, **config):
    trunk = Counting(model.get_decoder())
    return Engine(trunk, model.get_output_embeddings(), EngineConfig(speculative=True, **config)), trunk


def drafts_of(rows, grammar, seed):
    """Of each group's first rollout: as it is, shifted, with mistakes, cut, of other tokens, or none."""
    draw = random.Random(seed)
    free = [token for token in grammar.allowed if token != grammar.eos]
    found = []
    for row in rows:
        kind = draw.randrange(6)
        if kind == 1:
            row = [draw.choice(free), *row[:-1]] if grammar.eos is None else [draw.choice(free), *row]
        if kind == 2:
            row = [draw.choice(free) if draw.random() < 0.2 else token for token in row]
        if kind == 3 and grammar.eos is not None:
            row = row[: len(row) // 2]
        if kind == 4:
            row = [draw.choice(free) for _ in row]
        found.append([] if kind == 5 else row)
    return found


def without_repeats(engine, grammar, sampling):
    """Noise, and the longest completion that it draws, in which no two tokens follow each other twice."""
    for seed in range(50):
        noise = uniforms([str(seed)], 1, grammar.max_length)
        (row,) = engine.sample(grammar, PROMPTS[:1], noise, sampling).rows()
        if len(row) == grammar.max_length and len(set(pairwise(row))) == len(row) - 1:
            return noise, row
    pytest.fail("no seed draws such a completion")


ENDED, FIXED = Grammar(tuple(range(1, 9)), 30, eos=1), Grammar(tuple(range(3, 12)), 21)
FORCED = Grammar(tuple(range(3, 60)), 14, forced=((0, 70), (5, 71), (6, 71), (12, 72), (13, 73)))


@pytest.mark.parametrize(
    ("grammar", "sampling"),
    [  # each kind of drawing with two of the grammars, but the greedy one, which draws nothing
        (ENDED, SamplingConfig()),
        (ENDED, SamplingConfig(1.0, 0.9, 5)),
        (ENDED, SamplingConfig(2.0, 1.0)),
        (FIXED, GREEDY),
        (FIXED, SamplingConfig(2.0, 1.0)),
        (FORCED, SamplingConfig()),
        (FORCED, SamplingConfig(1.0, 0.9, 5)),
    ],
)
@torch.no_grad()
def test_whatever_the_draft_the_tokens_are_those_of_the_plain_path(model, grammar, sampling):
    noise = uniforms(["p", "q", "r"], 4, grammar.max_length)
    if grammar.forced:
        slow = Engine(model.get_decoder(), model.get_output_embeddings(), EngineConfig(speculative=False))
        expected = slow.sample(grammar, PROMPTS, noise, sampling).rows()
    else:
        expected = plain_rollouts(model, grammar.allowed, grammar, PROMPTS, noise, sampling)
    for seed in range(6):
        engine, _ = engine_of(model, max_tokens=None if seed else 60)  # once in several micro-batches
        drafts = drafts_of(expected[::4], grammar, seed)
        got = engine.sample(grammar, PROMPTS, noise, sampling, drafts)
        assert got.rows() == expected
        assert not got.ids[~got.mask].any()


@torch.no_grad()
def test_a_right_draft_takes_few_passes_and_a_wrong_token_one_more(model):
    grammar, noise = Grammar(tuple(range(3, 60)), 40), uniforms(["p"], 1, 40)
    engine, trunk = engine_of(model)
    (row,) = engine.sample(grammar, PROMPTS[:1], noise, GREEDY).rows()
    assert trunk.tokens == [3] + [1] * 39
    trunk.tokens.clear()
    assert engine.sample(grammar, PROMPTS[:1], noise, GREEDY, [row]).rows() == [row]
    assert trunk.tokens == [3, 16, 23]  # the prompt; a window from token 0; what is left: 16 to 38
    wrong = [*row[:8], row[8] % 50 + 4, *row[9:]]
    trunk.tokens.clear()
    assert engine.sample(grammar, PROMPTS[:1], noise, GREEDY, [wrong]).rows() == [row]
    assert trunk.tokens[:2] == [3, 16]
    assert len(trunk.tokens) < 7
    trunk.tokens.clear()
    assert engine.sample(grammar, PROMPTS[:1], noise, GREEDY, [[3] * 40]).rows() == [row]
    assert trunk.tokens[:4] == [3, 16, 2, 1]
    assert sum(trunk.tokens[4:]) < 40


@torch.no_grad()
def test_text_that_goes_on_after_an_insertion_is_found_again(model):
    grammar, sampling = Grammar(tuple(range(1, 200)), 40, eos=1), SamplingConfig(3.0, 1.0)
    engine, trunk = engine_of(model)
    noise, row = without_repeats(engine, grammar, sampling)
    trunk.tokens.clear()
    draft = row[:5] + row[9:]  # four tokens are new
    assert engine.sample(grammar, PROMPTS[:1], noise, sampling, [draft]).rows() == [row]
    assert len(trunk.tokens) < 14


@torch.no_grad()
def test_what_rollouts_have_in_common_runs_once(model):
    grammar, group = Grammar(tuple(range(3, 60)), 12), 16
    engine, trunk = engine_of(model)
    rows = engine.sample(grammar, PROMPTS[:1], uniforms(["p"], group, 12), GREEDY).rows()
    assert trunk.tokens == [3] + [1] * 11
    assert rows == rows[:1] * group
    trunk.tokens.clear()
    rows = engine.sample(grammar, PROMPTS[:1], uniforms(["p"], group, 12), SamplingConfig(0.5, 0.8)).rows()
    prefixes = [len({tuple(row[:length]) for row in rows}) for length in range(1, 12)]
    assert trunk.tokens == [3, *prefixes]
    assert 1 < prefixes[-1] <= group


@pytest.mark.parametrize("eos", [None, 3])
@torch.no_grad()
def test_a_draft_may_hold_ids_that_the_base_does_not_know(model, eos):
    grammar, noise = Grammar(tuple(range(3, 60)), 20, eos), uniforms(["p"], 2, 20)
    engine, _ = engine_of(model)
    rows = engine.sample(grammar, PROMPTS[:1], noise, SamplingConfig()).rows()
    outside = model.get_output_embeddings().weight.shape[0]
    for wrong in (-1, outside, outside + 1000):
        draft = [*rows[0][:4], wrong, *rows[0][5:], wrong]
        assert engine.sample(grammar, PROMPTS[:1], noise, SamplingConfig(), [draft]).rows() == rows


@torch.no_grad()
def test_the_draft_of_one_prompt_does_not_widen_the_passes_of_many(model):
    """All branches run as many tokens as the longest draft: 16 prompts, of which one has a draft, and a right one."""
    grammar, count = Grammar(tuple(range(3, 60)), 40), 16
    prompts, noise = [[2, 40 + n] for n in range(count)], uniforms([str(n) for n in range(count)], 1, 40)
    engine, trunk = engine_of(model)
    rows = engine.sample(grammar, prompts, noise, SamplingConfig()).rows()
    alone = sum(trunk.tokens)
    assert alone == count * (2 + 39)
    trunk.tokens.clear()
    assert engine.sample(grammar, prompts, noise, SamplingConfig(), [rows[0], *[[]] * (count - 1)]).rows() == rows
    assert sum(trunk.tokens) < 1.25 * alone
    trunk.tokens.clear()
    assert engine.sample(grammar, prompts, noise, SamplingConfig(), rows).rows() == rows
    assert len(trunk.tokens) < 6


@torch.no_grad()
def test_passes_without_a_draft_make_the_next_one_no_longer(model):
    grammar, sampling = Grammar(tuple(range(1, 200)), 150, eos=1), SamplingConfig(3.0, 1.0)
    engine, trunk = engine_of(model)
    noise, row = without_repeats(engine, grammar, sampling)
    trunk.tokens.clear()
    draft = [*row[120:122], *[200] * 70]  # drawn at 120, and not what follows
    assert engine.sample(grammar, PROMPTS[:1], noise, sampling, [draft]).rows() == [row]
    assert max(trunk.tokens) == 16  # as a first one
