"""Tokens that a grammar forces: emitted with probability 1, counted nowhere."""

import pytest
import torch

from support.tiny import text_backbone
from swirl_lightning.engine.attention import install
from swirl_lightning.engine.config import EngineConfig
from swirl_lightning.engine.drawing import SamplingConfig
from swirl_lightning.engine.engine import Engine
from swirl_lightning.engine.grammar import Grammar
from swirl_lightning.engine.noise import uniforms

ROWS = Grammar(tuple(range(20, 60)), 9, forced=((2, 7), (5, 7), (7, 8), (8, 9)))
FREE = [0, 1, 3, 4, 6]


@pytest.fixture(scope="module")
def model(gemma_path):
    model = text_backbone(gemma_path, quantization=None).load_model().eval()
    assert install(model)
    return model


def test_complete_and_content_are_inverse():
    content = [20, 21, 22, 23, 24]
    assert ROWS.complete(content) == [20, 21, 7, 22, 23, 7, 24, 8, 9]
    assert ROWS.content(ROWS.complete(content)) == content
    assert ROWS.free_length == 5
    with pytest.raises(ValueError, match="5 tokens is needed, got 4"):
        ROWS.complete(content[:4])


@pytest.mark.parametrize(
    ("kwargs", "word"),
    [
        ({"forced": ((1, 7), (0, 7))}, "sorted"),
        ({"forced": ((4, 7),)}, "within max_length"),
        ({"forced": {0: 7}}, "got a dict: give tuple"),
        ({"forced": 5}, "needs .position, id. pairs, got 5"),
        ({"forced": (1, 2)}, "needs .position, id. pairs, got"),
        ({"forced": ((0, 7),), "eos": 20}, "no eos"),
        ({"forced": tuple((i, 7) for i in range(4))}, "at least one token free"),
    ],
)
def test_impossible_grammars_are_named(kwargs, word):
    with pytest.raises(ValueError, match=word):
        Grammar((20, 21), 4, **kwargs)


@torch.no_grad()
def test_forced_tokens_are_emitted_and_the_rest_is_drawn_after_them(model):
    prompts, noise = [[2, 99], [2, 41, 42, 43]], uniforms(["a", "b"], 3, 9)
    engine = Engine(model.get_decoder(), model.get_output_embeddings())
    got = engine.sample(ROWS, prompts, noise, SamplingConfig(1.0, 1.0))
    rows = got.rows()
    assert all(len(row) == 9 and [row[p] for p, _ in ROWS.forced] == [7, 7, 8, 9] for row in rows)
    mask = torch.full((model.config.vocab_size,), -torch.inf)
    mask[20:60] = 0
    for n, row in enumerate(rows):  # no cache, no padding
        for step in FREE:
            logits = model(torch.tensor([prompts[n // 3] + row[:step]])).logits[0, -1] + mask
            assert int((logits.softmax(-1).cumsum(0) <= noise[n, step]).sum()) == row[step]


@pytest.mark.parametrize("shared_attention", [True, False])
@torch.no_grad()
def test_forced_tokens_count_in_no_log_prob_and_no_mean(model, shared_attention):
    rows = [ROWS.complete([20, 30, 40, 50, n]) for n in (21, 22)]
    prompts = [[2, 99, 5], [2, 99, 6]]
    places = [place for place, _ in ROWS.forced]
    engine = Engine(model.get_decoder(), model.get_output_embeddings(), EngineConfig(shared_attention))
    got = engine.score(ROWS, prompts, rows, group_size=2)
    mask = torch.full((model.config.vocab_size,), -torch.inf)
    mask[20:60] = 0
    for n, row in enumerate(rows):
        log_probs = (model(torch.tensor([prompts[n] + row])).logits[0] + mask).log_softmax(-1)
        expected = torch.stack([log_probs[2 + place, row[place]] for place in FREE])
        torch.testing.assert_close(got.values[n, FREE], expected, atol=1e-5, rtol=1e-5)
        assert got.mask[n].nonzero().flatten().tolist() == FREE
        assert not got.values[n, places].any()
        assert not got.entropy[n, places].any()
        torch.testing.assert_close(got.mean_per_token()[n], expected.mean(), atol=1e-5, rtol=1e-5)
