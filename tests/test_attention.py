"""Attention put together from parts, against the softmax over everything."""

import pytest
import torch
from transformers import GemmaConfig, GemmaForCausalLM, MistralConfig, MistralForCausalLM

from swirl_lightning import attention
from swirl_lightning.attention import GroupAttention, attend_rollouts, install


def by_definition(query, key, value, seen, scaling):
    """(B, H, Q, D), (B, h, T, D) twice, (B, Q, T) bool."""
    share = query.shape[1] // key.shape[1]
    key, value = (part.repeat_interleave(share, 1) for part in (key, value))
    scores = (query @ key.transpose(-1, -2) * scaling).masked_fill(~seen[:, None], -torch.inf)
    return scores.softmax(-1) @ value


@pytest.mark.parametrize("heads", [(4, 4), (6, 2)])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("flash", [True, False])
def test_rollouts_attend_to_their_prompt_and_themselves(heads, padded, flash, monkeypatch):
    many, few = heads
    batch, width, prompt, own, size = 2, 3, 7, 4, 8
    torch.manual_seed(0)
    query = torch.randn(batch, many, width, size)
    prompts = torch.randn(2, batch, few, prompt, size)
    mine = torch.randn(2, batch, few, width, own, size)
    mask = torch.ones(batch, prompt, dtype=torch.bool)
    mask[1, :3] = not padded
    if not flash:
        monkeypatch.setattr(attention, "_attend", attention._attend_by_products)
    hidden = mask.float().log()[:, None, None] if padded else None
    got = attend_rollouts(query, tuple(prompts), tuple(mine), hidden, 0.3)
    for k in range(width):
        keys, values = (torch.cat([p, m[:, :, k]], 2) for p, m in zip(prompts, mine, strict=True))
        seen = torch.cat([mask, torch.ones(batch, own, dtype=torch.bool)], 1)[:, None]
        expected = by_definition(query[:, :, k : k + 1], keys, values, seen, 0.3)[:, :, 0]
        torch.testing.assert_close(got[:, k], expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("heads", [(4, 4), (6, 2)])
def test_groups_attend_to_their_prefix_and_causally_to_themselves(heads):
    """Values and gradients, in float64; groups of unlike sizes and prefixes, one of them empty."""
    many, few = heads
    sizes, lengths, own, size = (3, 1, 2), (5, 0, 9), 4, 8
    torch.manual_seed(0)
    double = {"dtype": torch.float64, "requires_grad": True}
    query = torch.randn(sum(sizes), many, own, size, **double)
    key, value = (torch.randn(sum(sizes), many, own, size, **double) for _ in range(2))
    prefixes = [torch.randn(1, few, length, size, **double) for _ in range(2) for length in lengths]
    leaves = [query, key, value, *prefixes]
    weights = torch.randn(sum(sizes), many, own, size, dtype=torch.float64)

    got = GroupAttention.apply(query, key, value, [0, 3, 4, 6], 0.3, *prefixes)
    grads = torch.autograd.grad((got * weights).sum(), leaves)
    expected = []
    for row, group in enumerate(n for n, size in enumerate(sizes) for _ in range(size)):
        shared = [prefixes[group + 3 * part].repeat_interleave(many // few, 1) for part in range(2)]
        keys, values = (torch.cat([s, p[row, None]], 2) for s, p in zip(shared, (key, value), strict=True))
        seen = torch.ones(own, lengths[group] + own, dtype=torch.bool).tril(lengths[group])[None]
        expected.append(by_definition(query[row, None], keys, values, seen, 0.3))
    expected = torch.cat(expected)
    torch.testing.assert_close(got, expected, atol=1e-12, rtol=1e-10)
    for mine, true in zip(grads, torch.autograd.grad((expected * weights).sum(), leaves), strict=True):
        torch.testing.assert_close(mine, true, atol=1e-12, rtol=1e-9)


def test_a_model_whose_layers_do_not_see_everything_keeps_its_own_attention():
    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "vocab_size": 8}
    size |= {"num_attention_heads": 2, "num_key_value_heads": 2}
    windowed = MistralForCausalLM(MistralConfig(sliding_window=4, **size))
    assert not install(windowed)
    assert windowed.config._attn_implementation == "sdpa"
    assert install(MistralForCausalLM(MistralConfig(sliding_window=None, **size)))
    eager = GemmaForCausalLM(GemmaConfig(head_dim=8, **size))
    eager.set_attn_implementation("eager")
    assert not install(eager)
    with torch.no_grad():
        model = GemmaForCausalLM(GemmaConfig(head_dim=8, **size)).eval()
        before = model(torch.tensor([[1, 2, 3]])).logits
        assert install(model)
        torch.testing.assert_close(model(torch.tensor([[1, 2, 3]])).logits, before, atol=0, rtol=0)
