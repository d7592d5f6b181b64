"""Attention combined from parts, against the softmax over all keys."""

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    DeepseekV2Config,
    DynamicCache,
    GemmaConfig,
    GemmaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from swirl_lightning.engine import attention, kernels, packed_attention
from swirl_lightning.engine.attention import Seen, attend_rollouts, install
from swirl_lightning.engine.kv_cache import BranchCache, RolloutCache
from swirl_lightning.engine.packed_attention import PackedAttention
from swirl_lightning.engine.packing import Packing


def by_definition(query, key, value, seen, scaling):
    """(B, H, Q, D), (B, h, T, D) twice, (B, Q, T) bool."""
    share = query.shape[1] // key.shape[1]
    key, value = (part.repeat_interleave(share, 1) for part in (key, value))
    scores = (query @ key.transpose(-1, -2) * scaling).masked_fill(~seen[:, None], -torch.inf)
    return scores.softmax(-1) @ value


@pytest.mark.parametrize("heads", [(4, 4), (6, 2)])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("parts", [True, False])
def test_rollouts_attend_to_their_prompt_and_themselves(heads, padded, parts, monkeypatch):
    many, few = heads
    batch, width, prompt, own, size = 2, 3, 7, 4, 8
    torch.manual_seed(0)
    query = torch.randn(batch, many, width, size)
    prompts = torch.randn(2, batch, few, prompt, size)
    mine = torch.randn(2, batch, few, width, own, size)
    mask = torch.ones(batch, prompt, dtype=torch.bool)
    mask[1, :3] = not padded
    if not parts:
        monkeypatch.setattr(attention, "_in_parts", attention._at_once)
    everything = Seen(mask[:, None, None] if padded else None, torch.float32)
    got = attend_rollouts(query, tuple(prompts), tuple(mine), 0.3, everything)
    for k in range(width):
        keys, values = (torch.cat([p, m[:, :, k]], 2) for p, m in zip(prompts, mine, strict=True))
        seen = torch.cat([mask, torch.ones(batch, own, dtype=torch.bool)], 1)[:, None]
        expected = by_definition(query[:, :, k : k + 1], keys, values, seen, 0.3)[:, :, 0]
        torch.testing.assert_close(got[:, k], expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_products_of_rollouts_are_not_rounded_to_halves(dtype):
    """The largest exceed what float16 holds, and bfloat16 has steps of 256 there."""
    torch.manual_seed(0)
    query, *prompt = (torch.randn(1, heads, 6, 128).to(dtype) for heads in (2, 1, 1))
    own = [torch.randn(1, 1, 3, 4, 128).to(dtype) for _ in range(2)]
    for part in (query, prompt[0], own[0]):
        part[..., 0] = 300  # as a bias does: the same for all keys, so that the softmax does not see it
    assert (query @ prompt[0].transpose(-1, -2)).max() > torch.finfo(torch.float16).max
    found, expected = (
        attention._at_once(
            query.to(kind), [p.to(kind) for p in prompt], [o.to(kind) for o in own], 128**-0.5, Seen(None, kind)
        )
        for kind in (dtype, torch.float64)
    )
    assert (found - expected).norm() < 0.01 * expected.norm()


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("parts", [True, False])
def test_several_tokens_of_a_rollout_attend_to_those_before_them(parts, padded, monkeypatch):
    batch, many, few, width, window, prompt, own, size = 2, 6, 2, 3, 4, 5, 9, 8
    torch.manual_seed(0)
    query = torch.randn(batch, many, width * window, size)
    prompts, mine = torch.randn(2, batch, few, prompt, size), torch.randn(2, batch, few, width, own, size)
    positions = torch.randint(own - window, (batch, width, 1)) + torch.arange(window)
    seen = torch.arange(own) <= positions[..., None]  # (B, K, W, T)
    mask = torch.ones(batch, prompt, dtype=torch.bool)
    mask[1, :2] = not padded
    if not parts:
        monkeypatch.setattr(attention, "_in_parts", attention._at_once)
    everything = Seen(mask[:, None, None] if padded else None, torch.float32)
    everything.begin(seen)
    got = attend_rollouts(query, tuple(prompts), tuple(mine), 0.3, everything)
    for k in range(width):
        keys, values = (torch.cat([p, m[:, :, k]], 2) for p, m in zip(prompts, mine, strict=True))
        every = torch.cat([mask[:, None].expand(-1, window, -1), seen[:, k]], 2)
        rows = slice(k * window, (k + 1) * window)
        expected = by_definition(query[:, :, rows], keys, values, every, 0.3).transpose(1, 2)
        torch.testing.assert_close(got[:, rows], expected, atol=1e-6, rtol=1e-5)


SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 9}

GROUPS = [([1, 2, 3], [[4, 5], [6, 7], [8]]), ([], [[9, 10, 11]]), ([12], [[13], [14, 15], [16, 17]])]


def sequences():
    """Group by group: the columns, in one row, of each member's sequence with its prefix before it."""
    at = 0
    for prefix, members in GROUPS:
        shared, at = list(range(at, at + len(prefix))), at + len(prefix)
        for member in members:
            yield shared, list(range(at, at + len(member)))
            at += len(member)


@pytest.mark.parametrize("heads", [(4, 4), (6, 2)])
@pytest.mark.parametrize("attend", [kernels.CPU, kernels.PRODUCTS], ids=["flash", "products"])
def test_packed_sequences_attend_as_if_alone(heads, attend, monkeypatch):
    """Values and gradients, in float64."""
    monkeypatch.setattr(packed_attention, "kernel", lambda *_: attend)
    many, few = heads
    packing = Packing(GROUPS, torch.device("cpu"))
    length = packing.ids.shape[1]
    torch.manual_seed(0)
    leaves = [torch.randn(1, n, length, 8, dtype=torch.float64, requires_grad=True) for n in (many, few, few)]
    weights = torch.randn(1, many, length, 8, dtype=torch.float64)
    got = PackedAttention.apply(*leaves, packing.spans, 0.3)
    grads = torch.autograd.grad((got * weights).sum(), leaves)
    expected = torch.zeros_like(got)
    for prefix, own in sequences():
        columns = prefix + own
        causal = torch.ones(len(columns), len(columns), dtype=torch.bool).tril()[None]
        whole = by_definition(*(part[:, :, columns] for part in leaves), causal, 0.3)
        expected[:, :, columns] = whole  # a prefix is the same beside every member
    torch.testing.assert_close(got, expected, atol=1e-12, rtol=1e-10)
    for mine, true in zip(grads, torch.autograd.grad((expected * weights).sum(), leaves), strict=True):
        torch.testing.assert_close(mine, true, atol=1e-12, rtol=1e-9)


@pytest.mark.parametrize("attend", [kernels.CPU, kernels.PRODUCTS], ids=["flash", "products"])
@pytest.mark.parametrize("of_values", [torch.float32, torch.bfloat16])
def test_autocast_rounds_what_packed_attention_is_given_and_nothing_more(attend, of_values, monkeypatch):
    """With the biases of Qwen2's keys, rounded scores are wrong by whole units, and their gradients by more."""
    monkeypatch.setattr(packed_attention, "kernel", lambda *_: attend)
    packing = Packing(GROUPS, torch.device("cpu"))
    torch.manual_seed(0)
    query, key, value, weights = (torch.randn(1, 2, packing.ids.shape[1], 8) for _ in range(4))
    key[..., 0] += 100
    leaves = [part.requires_grad_() for part in (query, key, value.to(of_values))]
    rounded = [part.detach().bfloat16().double().requires_grad_() for part in leaves]
    with torch.autocast("cpu", torch.bfloat16):
        got, _ = attention._attention(torch.nn.Module(), *leaves, None, scaling=0.3, packing=packing)
    assert got.dtype == torch.bfloat16
    grads = torch.autograd.grad((got.transpose(1, 2) * weights).sum(), leaves)
    expected = PackedAttention.apply(*rounded, packing.spans, 0.3)  # in float64, as tested above
    true = torch.autograd.grad((expected * weights).sum(), rounded)
    off = [
        float((one - other).norm() / other.norm())
        for one, other in zip((got.transpose(1, 2), *grads), (expected, *true), strict=True)
    ]
    assert max(off[0], *off[2:]) < 0.02
    assert off[1] < 0.4  # the query's gradient is a difference of sums a hundred times as large


def branches(cache, mask):
    """A cache of three branches for each prompt, at their first token."""
    made = BranchCache(cache, mask, 4)
    made.split(torch.arange(2), torch.zeros(2, 3, dtype=torch.long))
    made.place(torch.zeros(2, 3, 1, dtype=torch.long), 1)
    return made


@pytest.mark.parametrize("parts", [True, False])
@pytest.mark.parametrize(
    "rollouts",
    [
        lambda cache, mask: RolloutCache(cache, mask, 3, 4),
        lambda cache, mask: RolloutCache(cache, mask, 3, 4, torch.zeros(1, dtype=torch.long)),
        branches,
    ],
    ids=["a step after the other", "a step that is repeated", "branches"],
)
def test_autocast_rounds_what_rollouts_attend_with_and_nothing_more(parts, rollouts, monkeypatch):
    if not parts:
        monkeypatch.setattr(attention, "_in_parts", attention._at_once)
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, heads, 3, 8) for heads in (4, 2, 2))
    prompt = [torch.randn(2, 2, 5, 8) for _ in range(2)]
    for keys in (key, prompt[0]):
        keys[..., 0] += 100
    cache, mask = DynamicCache(), torch.ones(2, 5, dtype=torch.long)
    mask[1, 0] = 0
    cache.update(*prompt, 0)
    with torch.autocast("cpu", torch.bfloat16):
        (layer,) = rollouts(cache, mask).layers
        got, _ = attention._attention(torch.nn.Module(), query, *layer.update(key, value), None, scaling=0.3)
    assert got.dtype == torch.bfloat16
    for k in range(3):
        own = (torch.cat([p, n[:, :, k : k + 1]], 2) for p, n in zip(prompt, (key, value), strict=True))
        keys, values = (part.bfloat16().double() for part in own)
        rounded = query[:, :, k : k + 1].bfloat16().double()
        seen = torch.cat((mask, torch.ones(2, 1)), 1).bool()[:, None]
        expected = by_definition(rounded, keys, values, seen, 0.3)[:, :, 0]
        assert (got[:, k] - expected).norm() < 0.02 * expected.norm()


def test_packed_sequences_keep_their_tokens_positions_and_sums():
    packing = Packing(GROUPS, torch.device("cpu"))
    columns = iter(packing.columns())
    numbers = torch.arange(packing.ids.numel()).view(packing.ids.shape) ** 2
    sums = packing.running_sum(numbers)
    for n, (prefix, members) in enumerate(GROUPS):
        begin = packing.spans[n].start
        before = [(0, begin + k) for k in range(len(prefix))]
        for member in members:
            column = next(columns)
            found = before + [(0, column + k) for k in range(len(member))]
            assert [int(packing.ids[at]) for at in found] == prefix + member
            assert [int(packing.positions[at]) for at in found] == list(range(len(found)))
            assert int(sums[found[-1]]) == sum(int(numbers[at]) for at in found)
    assert packing.ids.shape == (1, 17)


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


def test_packed_attention_stays_with_its_query_whatever_the_default_device():
    packing = Packing(GROUPS, torch.device("cpu"))
    torch.manual_seed(0)
    leaves = [torch.randn(1, 2, packing.ids.shape[1], 8, requires_grad=True) for _ in range(3)]
    with torch.device("meta"):
        out = PackedAttention.apply(*leaves, packing.spans, 0.3)
        grads = torch.autograd.grad(out.sum(), leaves)
    assert {t.device.type for t in (out, *grads)} == {"cpu"}


@pytest.mark.parametrize(
    ("config", "ours"),
    [
        (MistralConfig(**SMALL, sliding_window=8, max_position_embeddings=64), False),
        (MistralConfig(**SMALL, sliding_window=64, max_position_embeddings=64), True),  # it never binds
        (MistralConfig(**SMALL, sliding_window=None), True),
        (DeepseekV2Config(**SMALL, kv_lora_rank=8, q_lora_rank=None, first_k_dense_replace=1), False),
    ],
)
def test_attention_that_cannot_be_replaced_is_left_alone(config, ours):
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    assert install(model) == ours
