import pytest
import torch

from support.plain_rollouts import Counting, plain_rollouts
from support.tiny import text_backbone
from swirl_lightning.engine.attention import install
from swirl_lightning.engine.config import EngineConfig
from swirl_lightning.engine.drawing import GREEDY, SamplingConfig, draw, draw_several
from swirl_lightning.engine.engine import Engine
from swirl_lightning.engine.grammar import Grammar
from swirl_lightning.engine.noise import replace_tokens, uniforms


def truncated(logits, config):
    """The distribution that ``draw`` must follow, by definition, token by token."""
    p = (logits.double() / config.temperature).softmax(-1)
    order = p.argsort(descending=True)
    kept, mass = [], 0.0
    for i in order.tolist()[: config.top_k]:
        kept.append(i)
        mass += p[i].item() / (p[order[: config.top_k]].sum().item() if config.top_k else 1.0)
        if mass >= config.top_p:
            break
    out = torch.zeros_like(p)
    out[kept] = p[kept]
    return out / out.sum()


@pytest.mark.parametrize(
    "config",
    [
        SamplingConfig(temperature=1.0, top_p=1.0),
        SamplingConfig(temperature=0.75, top_p=0.9),
        SamplingConfig(temperature=1.3, top_p=1.0, top_k=4),
        SamplingConfig(temperature=0.9, top_p=0.8, top_k=5),
    ],
)
def test_frequencies_follow_the_truncated_distribution(config):
    torch.manual_seed(0)
    logits = torch.randn(12) * 1.5
    n = 200_000
    # an even grid of uniforms integrates the inverse CDF: the frequencies are exact to 1/n
    u = (torch.arange(n) + 0.5) / n
    index = draw(logits.expand(n, -1), u, config)
    frequencies = torch.bincount(index, minlength=12).double() / n
    torch.testing.assert_close(frequencies, truncated(logits, config), atol=2e-4, rtol=0)


@pytest.mark.parametrize("config", [GREEDY, SamplingConfig(0.75, 0.9, 8)])
def test_several_draws_of_a_row_are_draws_of_equal_rows(config):
    torch.manual_seed(0)
    logits, uniform = torch.randn(5, 12), torch.rand(5, 7)
    found = draw_several(logits, uniform, config)
    alone = draw(logits.repeat_interleave(7, 0), uniform.flatten(), config)
    assert torch.equal(found, alone.view(5, 7))


def test_extreme_uniforms_stay_inside_the_nucleus():
    logits = torch.tensor([[5.0, 4.0, -torch.inf, -3.0]]).expand(2, -1)
    config = SamplingConfig(temperature=1.0, top_p=0.9)
    assert draw(logits, torch.tensor([0.0, 1.0 - 2**-24]), config).tolist() == [0, 1]
    assert draw(logits, torch.tensor([0.3, 0.99]), GREEDY).tolist() == [0, 0]


@pytest.mark.parametrize("config", [SamplingConfig(1.0, 1.0), SamplingConfig(1.0, 0.9), SamplingConfig(1.0, 1.0, 2)])
def test_logits_that_are_nan_give_tokens_all_the_same(config):
    """Of a model that has diverged: an index beyond the vocabulary would be a device assertion on a GPU."""
    logits = torch.tensor([[0.0, 1.0, 2.0], [torch.nan] * 3, [0.0, torch.nan, 1.0]])
    found = draw_several(logits, torch.tensor([[0.1, 0.9]] * 3), config)
    assert found.min() >= 0
    assert found.max() < 3
    assert torch.equal(found[:1], draw_several(logits[:1], torch.tensor([[0.1, 0.9]]), config))


def test_uniforms_depend_on_the_key_alone():
    both = uniforms(["a", "b"], 3, 5)
    torch.testing.assert_close(uniforms(["b"], 3, 5), both[3:])
    assert not torch.equal(both[:3], both[3:])
    assert both.min() >= 0
    assert both.max() < 1
    torch.set_default_dtype(torch.bfloat16)  # as a Trainer in half precision does within a step
    try:
        assert torch.equal(uniforms(["a", "b"], 3, 5), both)
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(("one", "other"), [(26346, 91628), (49588, 69464)])
def test_keys_have_noise_of_their_own_however_many_there_are(one, other):
    """Hashes of these keys agree in the 32 bits that a seed of torch's generator has: of 100,000, one pair does."""
    assert not torch.equal(uniforms([f"0|1|fwm|{one}"], 1, 8), uniforms([f"0|1|fwm|{other}"], 1, 8))


@pytest.fixture(scope="module")
def world(gemma_path):
    """The model, an engine that decodes token by token, and the ids of actions."""
    backbone = text_backbone(gemma_path, quantization=None)
    model = backbone.load_model().eval()
    assert install(model)
    config = EngineConfig(speculative=False)
    return model, Engine(backbone.trunk(model), backbone.head(model), config), backbone.action_grammar.allowed


@pytest.mark.parametrize("config", [SamplingConfig(), GREEDY, SamplingConfig(1.5, 1.0)])
@torch.no_grad()
def test_rollouts_equal_the_plain_path_whatever_the_padding(world, config):
    model, engine, allowed = world
    grammar = Grammar(allowed, 7, eos=1)
    prompts = [[2, 40, 41], [2, 50, 51, 52, 53, 54, 55, 56], [2, 99]]
    noise = uniforms(["p", "q", "r"], 4, 7)
    got = engine.sample(grammar, prompts, noise, config)
    assert got.rows() == plain_rollouts(model, allowed, grammar, prompts, noise, config)
    alone = engine.sample(grammar, prompts[:1], noise[:4], config)
    assert alone.rows() == got.rows()[:4]


@torch.no_grad()
def test_completions_stay_inside_the_grammar_and_end_with_eos_once(world):
    _, engine, _ = world
    grammar = Grammar(tuple(range(1, 20)), 9, eos=1)
    noise = uniforms([str(i) for i in range(8)], 8, 9)
    prompts = [[2, 30 + i] for i in range(8)]
    got = engine.sample(grammar, prompts, noise, SamplingConfig(3.0, 1.0))
    rows = got.rows()
    assert all(set(row) <= set(grammar.allowed) for row in rows)
    assert all(row.index(1) == len(row) - 1 for row in rows if 1 in row)
    assert any(1 in row for row in rows)
    assert all(1 in row or len(row) == 9 for row in rows)
    assert not got.ids[~got.mask].any()


@pytest.mark.parametrize(
    "config",
    [EngineConfig(speculative=False), EngineConfig(shared_attention=False), EngineConfig(cuda_graphs=True)],
    ids=["shared", "copied", "in place"],
)
@pytest.mark.parametrize("prompts", [[[2, 40, 41], [2, 50, 51]], [[2, 40], [2, 50, 51, 52, 53]]])
@torch.no_grad()
def test_prompts_run_once_and_finished_rows_leave(world, prompts, config):
    model, _, _ = world
    grammar = Grammar(tuple(range(1, 9)), 24, eos=1)
    noise, sampling = uniforms(["p", "q"], 8, 24), SamplingConfig(2.0, 1.0)
    trunk = Counting(model.get_decoder())
    got = Engine(trunk, model.get_output_embeddings(), config).sample(grammar, prompts, noise, sampling)
    assert got.rows() == plain_rollouts(model, grammar.allowed, grammar, prompts, noise, sampling)
    assert trunk.tokens[:2] == [2 * max(map(len, prompts)), 16]
    assert trunk.tokens[-1] < 8
    assert len({len(row) for row in got.rows()}) > 4


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
@pytest.mark.parametrize("quantization", [None, "nf4"])
@torch.no_grad()
def test_replayed_steps_draw_what_steps_draw(gemma_path, quantization):
    backbone = text_backbone(gemma_path, quantization=quantization)
    model = backbone.load_model().eval().cuda()
    assert install(model)
    grammar = Grammar(tuple(range(1, 60)), 24, eos=1)
    prompts, noise = [[2, 40, 41], [2, 50]], uniforms(["p", "q"], 8, 24)
    rows = [
        Engine(backbone.trunk(model), backbone.head(model), EngineConfig(cuda_graphs=replayed))
        .sample(grammar, prompts, noise, SamplingConfig(2.0, 1.0))
        .rows()
        for replayed in (False, True)
    ]
    assert rows[0] == rows[1]


@torch.no_grad()
def test_rows_of_a_split_group_stand_beside_those_of_whole_ones(world):
    _, engine, allowed = world
    grammar = Grammar(allowed, 7, eos=1)
    prompts, noise = [[2, 40, 41], [2, 50], [2, 99]], uniforms(["p", "q", "r"], 4, 7)
    whole = engine.sample(grammar, prompts, noise, SamplingConfig())
    small = Engine(engine.trunk, engine.head, EngineConfig(max_tokens=30))
    part = small.sample(grammar, prompts, noise, SamplingConfig())
    assert part.rows() == whole.rows()


@torch.no_grad()
def test_truncation_trims_what_is_sampled_and_not_the_log_probs(world):
    """The policy is the untrimmed constrained distribution at the sampling temperature (TRL's convention)."""
    model, engine, _ = world
    grammar = Grammar(tuple(range(3, 60)), 4)
    config = SamplingConfig(temperature=0.75, top_p=0.5)
    got = engine.sample(grammar, [[2, 9]], uniforms(["k"], 64, 4), config)
    logits = model(torch.tensor([[2, 9]])).logits[0, -1, 3:60] / 0.75
    p = logits.softmax(-1)
    nucleus = set(
        (p.argsort(descending=True)[: int((p.sort(descending=True)[0].cumsum(0) < 0.5).sum()) + 1] + 3).tolist()
    )
    assert set(got.ids[:, 0].tolist()) <= nucleus
    scored = engine.score(grammar, [[2, 9]] * 64, got.rows(), group_size=64, temperature=0.75)
    expected = logits.log_softmax(-1)[got.ids[:, 0] - 3]
    torch.testing.assert_close(scored.values[:, 0], expected, atol=1e-5, rtol=1e-5)


def test_bad_settings_are_named():
    for kwargs, word in (
        ({"temperature": -1}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_k": 0}, "top_k"),
    ):
        with pytest.raises(ValueError, match=word):
            SamplingConfig(**kwargs)
    for kwargs, word in (
        ({"max_tokens": 0}, r"max_tokens must lie in \[1, inf\)"),
        ({"cuda_graphs": True, "shared_attention": False}, "cuda_graphs needs shared_attention"),
        ({"speculative": True, "shared_attention": False}, "speculative needs shared_attention"),
        ({"speculative": True, "cuda_graphs": True}, "no fixed shape for cuda_graphs"),
    ):
        with pytest.raises(ValueError, match=word):
            EngineConfig(**kwargs)


def test_replaced_tokens_are_allowed_and_as_many_as_the_share_says():
    numbers = torch.rand(3, 10_000, generator=torch.Generator().manual_seed(0))
    numbers[0, 0] = 0.5
    got = replace_tokens([7] * 10_000, [100, 101, 102], 0.2, numbers)
    replaced = [t for t in got if t != 7]
    assert set(replaced) == {100, 101, 102}
    assert len(replaced) / 10_000 == pytest.approx(0.1, abs=0.01)
    assert replace_tokens([7, 8], [100], 0.0, numbers) == [7, 8]
