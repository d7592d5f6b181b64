import warnings
import weakref
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, get_peft_model

from support.tiny import text_backbone
from swirl_lightning.engine import kernels, packed_attention
from swirl_lightning.engine.attention import install
from swirl_lightning.engine.budget import Group, TokenBudget
from swirl_lightning.engine.config import EngineConfig
from swirl_lightning.engine.drawing import SamplingConfig
from swirl_lightning.engine.engine import Engine
from swirl_lightning.engine.grammar import Grammar
from swirl_lightning.engine.noise import uniforms

TEMPERATURE = 0.8


@pytest.fixture(scope="module", params=[None, "nf4"])
def world(gemma_path, request):
    backbone = text_backbone(gemma_path, quantization=request.param)
    torch.manual_seed(1)
    base = backbone.load_model()
    assert install(base)
    model = get_peft_model(base, LoraConfig(r=4, target_modules="all-linear"))
    for name, p in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p, std=0.1)
    base = model.get_base_model()
    return model, Engine(backbone.trunk(base), backbone.head(base)), backbone.action_grammar


def groups():
    torch.manual_seed(3)
    draw = lambda n: torch.randint(3, 250, (n,)).tolist()  # noqa: E731
    prompts, completions = [], []
    for shared, tails in ((5, (2, 4, 2, 2)), (1, (3, 1, 2, 6)), (9, (0, 0, 0, 0))):
        prefix = [2, *draw(shared)]
        for tail in tails:
            prompts.append(prefix + draw(tail))
            completions.append([*draw(int(torch.randint(1, 5, (1,)))), 1])
    prompts[2], completions[2] = prompts[0], completions[0]  # a repeated rollout
    return prompts, completions


def brute_force(model, grammar, prompts, completions):
    """Whole rows one by one, full-vocabulary logits, then the mask."""
    mask = torch.full((model.config.vocab_size,), -torch.inf)
    mask[list(grammar.allowed)] = 0
    rows = []
    for prompt, completion in zip(prompts, completions, strict=True):
        logits = model(torch.tensor([prompt + completion])).logits[0].float() + mask
        log_probs = (logits / TEMPERATURE).log_softmax(-1)
        at = torch.arange(len(prompt) - 1, len(prompt) + len(completion) - 1)
        rows.append(log_probs[at, torch.tensor(completion)])
    return rows


@pytest.mark.parametrize(
    "config",
    [
        EngineConfig(),
        EngineConfig(shared_attention=False),
        EngineConfig(max_tokens=30),
        EngineConfig(max_tokens=1),
    ],
)
@pytest.mark.parametrize("attend", [kernels.CPU, kernels.PRODUCTS], ids=["flash", "products"])
def test_values_and_gradients_equal_brute_force(world, config, attend, monkeypatch):
    monkeypatch.setattr(packed_attention, "kernel", lambda *_: attend)
    model, engine, grammar = world
    engine = Engine(engine.trunk, engine.head, config)
    prompts, completions = groups()
    params = [p for p in model.parameters() if p.requires_grad]
    torch.manual_seed(0)
    weights = [torch.randn(len(c)) for c in completions]

    got = engine.score(grammar, prompts, completions, group_size=4, temperature=TEMPERATURE)
    sum((got.values[n, : len(w)] * w).sum() for n, w in enumerate(weights)).backward()
    grads = [p.grad.clone() for p in params]
    model.zero_grad()
    rows = brute_force(model.get_base_model(), grammar, prompts, completions)
    sum((r * w).sum() for r, w in zip(rows, weights, strict=True)).backward()

    for n, row in enumerate(rows):
        torch.testing.assert_close(got.values[n, : len(row)], row, atol=1e-5, rtol=1e-5)
        assert not got.values[n, len(row) :].any()
        assert got.mask[n].sum() == len(row)
    for mine, p in zip(grads, params, strict=True):
        torch.testing.assert_close(mine, p.grad, atol=1e-4 * float(p.grad.abs().max()), rtol=1e-4)
    model.zero_grad()


def test_a_trunk_that_drops_what_it_does_not_know_is_named(world):
    _, engine, grammar = world

    class Deaf(torch.nn.Module):
        def forward(self, input_ids, attention_mask, position_ids, **kwargs):
            return engine.trunk(input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids)

    with torch.no_grad(), pytest.raises(RuntimeError, match=r"Deaf does not hand .* eager"):
        Engine(Deaf(), engine.head).score(grammar, *groups(), group_size=4)


@torch.no_grad()
def test_batch_composition_changes_nothing(world):
    _, engine, grammar = world
    prompts, completions = groups()
    whole = engine.score(grammar, prompts, completions, group_size=4)
    part = engine.score(grammar, prompts[4:8], completions[4:8], group_size=4)
    width = part.values.shape[1]
    torch.testing.assert_close(part.values, whole.values[4:8, :width], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_equal_rows_run_once(world):
    _, engine, grammar = world
    prompts, completions = groups()
    seen = []
    handle = engine.trunk.register_forward_pre_hook(
        lambda m, a, k: seen.append(k["input_ids"].numel()), with_kwargs=True
    )
    engine.score(grammar, [prompts[0]] * 8, [completions[0]] * 8, group_size=8)
    handle.remove()
    assert sum(seen) == len(prompts[0]) + len(completions[0]) - 1


class Small(torch.nn.Module):
    """A trunk on a device with room for a number of tokens, those in the cache included."""

    def __init__(self, trunk, tokens):
        super().__init__()
        self.trunk, self.tokens = trunk, tokens

    def forward(self, input_ids, past_key_values=None, **kwargs):
        held = past_key_values.get_seq_length() if past_key_values is not None else 0
        if input_ids.shape[0] * (input_ids.shape[1] + held) > self.tokens:
            raise torch.OutOfMemoryError
        return self.trunk(input_ids=input_ids, past_key_values=past_key_values, **kwargs)


def test_out_of_memory_halves_the_budget_and_loses_nothing(world):
    model, engine, grammar = world
    prompts, completions = groups()
    params = [p for p in model.parameters() if p.requires_grad]
    results = []
    for tokens in (10_000, 40):
        small = Engine(Small(engine.trunk, tokens), engine.head)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            got = small.score(grammar, prompts, completions, group_size=4)
        model.zero_grad()
        got.values.sum().backward()
        results.append((got, [p.grad.clone() for p in params]))
        assert (small.scoring_budget.tokens is None) == (tokens > 1000)
        assert any("out of memory" in str(w.message) for w in said) == (tokens < 1000)
    torch.testing.assert_close(results[1][0].values, results[0][0].values, atol=1e-5, rtol=1e-5)
    for small, large in zip(results[1][1], results[0][1], strict=True):
        torch.testing.assert_close(small, large, atol=1e-4, rtol=1e-4)
    model.zero_grad()
    with pytest.raises(torch.OutOfMemoryError):
        Engine(Small(engine.trunk, 5), engine.head).score(grammar, prompts, completions, group_size=4)


def test_out_of_memory_frees_the_attempt_before_the_cache_is_emptied(monkeypatch):
    """Memory that the traceback of an exception still holds cannot be returned."""
    made, held = [], []

    def work(batch, several):
        tensor = torch.ones(3)
        made.append(weakref.ref(tensor))
        if len(batch) > 1:
            raise torch.OutOfMemoryError

    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: held.append([old() for old in made]))
    budget = TokenBudget()
    with pytest.warns(UserWarning, match="out of memory"):
        done = budget.run([Group((n,), 4) for n in range(4)], work)
    assert sorted(row for rows, _ in done for row in rows) == [0, 1, 2, 3]
    assert held
    assert all(tensor is None for tensors in held for tensor in tensors)
    assert (budget.tokens, budget.largest) == (4, 4)


def test_a_row_that_does_not_fit_alone_and_other_errors_end_the_run():
    def work(told):
        def fails(batch, several):
            raise RuntimeError(told)

        return fails

    with pytest.raises(torch.OutOfMemoryError, match="ALLOC_FAILED"):
        TokenBudget().run([Group((0,), 4)], work("CUDNN_STATUS_ALLOC_FAILED"))
    calls = []
    try:
        raise torch.OutOfMemoryError
    except torch.OutOfMemoryError:  # an error while another is handled is not that other one
        with pytest.raises(RuntimeError, match="shapes"):
            TokenBudget().run(
                [Group((n,), 4) for n in range(4)], lambda *given: calls.append(1) or work("shapes")(*given)
            )
    assert len(calls) == 1


@pytest.mark.parametrize(("given", "gradient"), [(None, False), (16, False), (16, True)])
def test_a_halved_budget_grows_again_to_what_it_was(given, gradient):
    """Memory that another process took may be free again; and no attempt is made at every step.

    After a pass with gradient it stays: the backward pass, which is not repeated, may not fit.
    """
    budget, short, sizes = TokenBudget(given), True, []

    def work(batch, several):
        sizes.append(sum(group.tokens for group in batch))
        if short and len(batch) > 1:
            raise torch.OutOfMemoryError

    groups = [Group((n,), 4) for n in range(4)]
    with pytest.warns(UserWarning, match="out of memory"), torch.set_grad_enabled(gradient):
        budget.run(groups, work)
    assert sizes == [16, 8, 4, 4, 4, 4]
    short = False
    sizes.clear()
    with torch.no_grad():
        for _ in range(60):
            budget.run(groups, work)
    if gradient:
        assert set(sizes) == {4}
        budget.reset()
        budget.run(groups, work)
        assert sizes[-1] == 16
        return
    assert sizes.count(16) > 10
    assert sizes.index(16) > 60
    assert sizes == sorted(sizes)


@torch.no_grad()
@pytest.mark.parametrize("tokens", [None, 60, 1])
def test_a_budget_changes_no_rollout(world, tokens):
    _, engine, grammar = world
    grammar = Grammar(grammar.allowed, 6, eos=1)
    prompts = [[2, 40], [2, 50, 51, 52, 53, 54], [2, 99, 98]]
    noise = uniforms(["p", "q", "r"], 4, 6)
    whole = engine.sample(grammar, prompts, noise, SamplingConfig())
    limited = Engine(engine.trunk, engine.head, EngineConfig(max_tokens=tokens))
    part = limited.sample(grammar, prompts, noise, SamplingConfig())
    assert part.rows() == whole.rows()
    scarce = Engine(Small(engine.trunk, 50), engine.head).sample(grammar, prompts, noise, SamplingConfig())
    assert scarce.rows() == whole.rows()


def test_micro_batches_hold_rows_of_similar_length_and_every_row_once():
    budget, seen = TokenBudget(100), []
    groups = [Group((0, 1, 2), 10), Group((3, 4), 50), Group((5,), 11), Group((6, 7, 8, 9), 30), Group((10,), 400)]
    done = budget.run(groups, lambda batch, several: seen.append((batch, several)))
    assert sorted(row for rows, _ in done for row in rows) == list(range(11))
    assert [[g.tokens for g in batch] for batch, _ in seen] == [[400], [100], [60], [60], [30, 11]]
    assert all(several for _, several in seen)


@pytest.mark.parametrize(
    ("tokens", "parts"), [(2500, [16]), (2426, [16]), (2425, [8, 8]), (2200, [4] * 4), (9, [1] * 16)]
)
def test_tokens_that_a_group_shares_count_once(tokens, parts):
    """Phase II of Liquid: 2,106 tokens of two images, and 16 actions of 20."""
    done = TokenBudget(tokens).run([Group(tuple(range(16)), 20, 2106)], lambda batch, several: None)
    assert sorted((len(rows) for rows, _ in done), reverse=True) == parts


@torch.no_grad()
def test_scoring_runs_no_more_tokens_than_its_budget(world):
    _, engine, grammar = world
    prompts, completions = (
        [[2, *range(40, 60), 70 + n % 8] for n in range(16)],
        [[9, 8, 7 - n % 4, 1] for n in range(16)],
    )
    seen = []
    handle = engine.trunk.register_forward_pre_hook(
        lambda m, a, k: seen.append(k["input_ids"].numel()), with_kwargs=True
    )
    for tokens, passes in ((106, 1), (105, 2), (53, 2), (52, 4)):
        seen.clear()
        limited = Engine(engine.trunk, engine.head, EngineConfig(max_tokens=tokens))
        limited.score(grammar, prompts, completions, group_size=8)
        assert len(seen) == passes
        assert max(seen) <= tokens
    handle.remove()


def test_passes_that_run_again_keep_the_random_state_of_the_device(world, monkeypatch):
    """torch finds devices among the arguments alone; without it, dropout would draw another mask on a GPU."""
    _, engine, grammar = world
    prompts, completions = groups()
    found, get = [], torch.utils.checkpoint.get_device_states

    def device_states(*given):
        found.append({value.device for value in given if isinstance(value, torch.Tensor)})
        return get(*given)

    monkeypatch.setattr(torch.utils.checkpoint, "get_device_states", device_states)
    monkeypatch.setattr(torch.utils.checkpoint, "_get_device_module", lambda name: SimpleNamespace(_initialized=True))
    limited = Engine(engine.trunk, engine.head, EngineConfig(max_tokens=20))
    limited.score(grammar, prompts, completions, group_size=4)
    assert len(found) > 1
    assert all(devices == {engine.device} for devices in found)


def test_mean_per_token_counts_only_real_tokens(world):
    _, engine, grammar = world
    prompts, completions = groups()
    with torch.no_grad():
        got = engine.score(grammar, prompts, completions, group_size=4)
    by_hand = torch.stack([got.values[n, : len(c)].mean() for n, c in enumerate(completions)])
    torch.testing.assert_close(got.mean_per_token(), by_hand)


def test_empty_rows_are_refused(world):
    _, engine, grammar = world
    with pytest.raises(ValueError, match="empty"):
        engine.score(grammar, [[2]], [[]])
