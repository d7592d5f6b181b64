from dataclasses import replace

import pytest
import torch
from torch import nn

import swirl_lightning.engine.vocabulary as module
from swirl_lightning.engine.engine import Engine
from swirl_lightning.engine.grammar import Grammar
from swirl_lightning.engine.tensor_memory import peak_of
from swirl_lightning.engine.vocabulary import VocabularySlice

SETS = {
    "contiguous": list(range(20, 40)),
    "with holes": [i for i in range(5, 45) if i not in (7, 8, 30)],
    "sparse": [0, 3, 11, 29, 47],
    "whole": list(range(48)),
}

CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.mark.parametrize("allowed", SETS.values(), ids=SETS.keys())
@pytest.mark.parametrize("bias", [False, True])
def test_log_probs_and_gradient_match_brute_force_in_float64(allowed, bias, monkeypatch):
    monkeypatch.setattr(module, "LOGITS_PER_CHUNK", 100)  # several chunks
    torch.manual_seed(0)
    head = nn.Linear(16, 48, bias=bias)
    hidden = torch.randn(23, 16, requires_grad=True)
    ids = torch.tensor(allowed)[torch.randint(len(allowed), (23,))]
    values, entropy = VocabularySlice(head, allowed).log_probs(hidden, ids, temperature=0.7)
    weights = torch.randn(23)
    (values * weights).sum().backward()

    exact = hidden.detach().double().requires_grad_()
    logits = (exact @ head.weight.detach().double().T + (head.bias.detach().double() if bias else 0)) / 0.7
    mask = torch.full((48,), -torch.inf, dtype=torch.float64)
    mask[allowed] = 0
    log_probs = (logits + mask).log_softmax(-1)
    expected = log_probs[torch.arange(23), ids]
    (expected * weights.double()).sum().backward()
    p = log_probs.exp()
    expected_entropy = -(p * log_probs.nan_to_num(neginf=0)).sum(-1)
    torch.testing.assert_close(values.double(), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(entropy.double(), expected_entropy, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(hidden.grad.double(), exact.grad, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=CUDA)])
def test_logits_are_not_rounded_to_the_type_of_the_head(dtype, autocast, device):
    torch.manual_seed(0)
    head = nn.Linear(64, 48, bias=True).to(device, dtype)
    hidden = torch.randn(23, 64, dtype=dtype, device=device)
    with torch.autocast(device, torch.bfloat16, enabled=autocast):
        logits = VocabularySlice(head, SETS["whole"]).logits(hidden)
    exact = hidden.double() @ head.weight.double().T + head.bias.double()
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits.double(), exact, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_autocast_rounds_no_logits_of_a_float32_head():
    torch.manual_seed(0)
    head, hidden = nn.Linear(64, 48), torch.randn(23, 64)
    with torch.autocast("cpu", torch.bfloat16):
        logits = VocabularySlice(head, SETS["whole"]).logits(hidden)
    torch.testing.assert_close(logits, head(hidden), atol=1e-5, rtol=1e-5)


def test_an_id_outside_the_grammar_is_named():
    slice_ = VocabularySlice(nn.Linear(4, 48, bias=False), SETS["with holes"])
    with pytest.raises(ValueError, match=r"\[30\]"):
        slice_.log_probs(torch.zeros(2, 4), torch.tensor([6, 30]))
    with pytest.raises(ValueError, match="outside the head"):
        VocabularySlice(nn.Linear(4, 48), [1, 48])


def test_a_contiguous_slice_is_a_view_and_a_sparse_one_a_copy():
    head = nn.Linear(4, 48, bias=False)
    assert VocabularySlice(head, SETS["contiguous"]).weight.untyped_storage().data_ptr() == head.weight.data_ptr()
    assert VocabularySlice(head, SETS["sparse"]).weight.shape == (5, 4)


@torch.no_grad()
def test_a_decode_step_copies_no_half_precision_head():
    """The head of 48 rows is read for two rows a step."""
    head = nn.Linear(64, 48, bias=False).bfloat16()
    slice_, hidden = VocabularySlice(head, SETS["sparse"]), torch.randn(2, 64, dtype=torch.bfloat16)
    slice_.logits(hidden)
    assert slice_.copied_bytes == 5 * 64 * (2 + 4)
    assert peak_of(lambda: slice_.logits(hidden), torch.device("cpu")) < 5 * 64 * 4
    assert VocabularySlice(head.float(), SETS["whole"]).copied_bytes == 0


def test_slices_are_made_once_and_looked_up_without_hashing_the_ids():
    class Unhashed(tuple):
        def __hash__(self):
            raise AssertionError("hashed")

    engine = Engine(nn.Identity(), nn.Linear(4, 48, bias=False))
    grammar = Grammar(Unhashed(SETS["sparse"]), 7)
    first = engine.vocabulary(grammar)
    assert engine.vocabulary(grammar) is engine.vocabulary(replace(grammar, max_length=9)) is first
    equal = replace(grammar, allowed=tuple(iter(grammar.allowed)))  # as a property makes them anew at each look
    assert engine.vocabulary(equal) is first
    weight = engine.head.weight
    engine.head.weight = nn.Parameter(weight.detach().clone())  # as a move to another device and back does
    moved = engine.vocabulary(grammar)
    assert moved is not first
    assert moved.weight.untyped_storage().data_ptr() != weight.untyped_storage().data_ptr()
    first = moved
    sizes = {len(engine.vocabulary(Grammar(tuple(range(n)), 7))) for n in range(1, 40)}  # ids of tuples may recur
    assert sizes == set(range(1, 40))
