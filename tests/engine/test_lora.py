import pytest
import torch
from bitsandbytes.nn import Linear4bit
from torch import nn

from support.tiny import text_backbone
from swirl_lightning.adapters import AdapterConfig, Adapters
from swirl_lightning.engine import lora
from swirl_lightning.engine.lora import LoRALinear
from swirl_lightning.engine.quantization import Packed


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("rows", [1, 50])
def test_it_computes_and_differentiates_the_formula(rows, biased):
    torch.manual_seed(0)
    shapes = (rows, 7), (5, 7), (5,), (3, 7), (5, 3)
    x, weight, bias, a, b = (torch.randn(*shape, dtype=torch.float64) for shape in shapes)
    learnt = [part.requires_grad_() for part in (x, a, b)]
    fixed = bias if biased else None
    out = LoRALinear.apply(x, weight, fixed, a, b, 0.5)
    expected = x @ weight.T + (bias if biased else 0) + 0.5 * (x @ a.T) @ b.T
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)
    grad = torch.randn_like(out)
    found, wanted = (torch.autograd.grad(part, learnt, grad, retain_graph=True) for part in (out, expected))
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


def test_a_weight_in_four_bits_is_as_its_dense_copy():
    torch.manual_seed(0)
    layer = Linear4bit(64, 96, bias=True, compute_dtype=torch.float32, quant_type="nf4").to("cpu")
    assert layer.weight.quant_state is not None
    packed = Packed(layer)
    x, a, b = (torch.randn(*shape, requires_grad=True) for shape in ((50, 64), (4, 64), (96, 4)))
    grad = torch.randn(50, 96)
    found, wanted = (
        [out := LoRALinear.apply(x, weight, layer.bias.detach(), a, b, 0.5), *torch.autograd.grad(out, (x, a, b), grad)]
        for weight in (packed, packed.dense(torch.float32))
    )
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("needed", [(True, False, False), (False, True, False), (False, False, True)])
def test_only_what_is_asked_for_gets_a_gradient(needed):
    torch.manual_seed(0)
    parts = [
        torch.randn(*shape, requires_grad=own) for shape, own in zip(((4, 7), (3, 7), (5, 3)), needed, strict=True)
    ]
    x, a, b = parts
    weight = torch.randn(5, 7)
    LoRALinear.apply(x, weight, None, a, b, 2.0).sum().backward()
    found = [None if part.grad is None else part.grad.clone() for part in parts]
    (nn.functional.linear(x, weight) + 2.0 * (x @ a.T) @ b.T).sum().backward()
    for got, part, own in zip(found, parts, needed, strict=True):
        assert (got is not None) == own
        if got is not None:
            torch.testing.assert_close(part.grad, 2 * got)  # both passes, one after the other


def test_in_bfloat16_it_is_no_further_from_the_truth_than_peft_is():
    torch.manual_seed(0)
    x, weight, grad = (torch.randn(*shape).bfloat16() for shape in ((200, 64), (96, 64), (200, 96)))
    a, b = torch.randn(16, 64, requires_grad=True), torch.randn(96, 16, requires_grad=True)
    x.requires_grad_()

    def by_peft(x, weight, a, b):
        low = nn.functional.linear(nn.functional.linear(x.to(a.dtype), a), b) * 0.1
        return nn.functional.linear(x, weight) + low.to(x.dtype)

    def run(function, *parts):
        out = function(*parts)
        return [out, *torch.autograd.grad(out, [parts[0], *parts[2:]], grad.to(out.dtype))]

    truth = run(by_peft, *(part.detach().double().requires_grad_() for part in (x, weight, a, b)))
    ours = run(lambda x, weight, a, b: LoRALinear.apply(x, weight, None, a, b, 0.1), x, weight, a, b)
    peft = run(by_peft, x, weight, a, b)
    for name, true, own, other in zip(("out", "x", "A", "B"), truth, ours, peft, strict=True):
        error, bound = ((part.double() - true).norm() / true.norm() for part in (own, other))
        assert own.dtype == other.dtype
        assert error < max(1.3 * bound, 4e-3), name  # 2⁻⁸: gradients of A and B are rounded once, as under autocast


def test_in_float16_small_gradients_of_an_adapter_do_not_vanish():
    torch.manual_seed(0)
    x, weight, grad = torch.randn(64, 32).half(), torch.randn(48, 32).half(), (torch.randn(64, 48) * 1e-5).half()
    a, b = torch.randn(4, 32, requires_grad=True), (torch.randn(48, 4) * 1e-4).requires_grad_()
    found = torch.autograd.grad(LoRALinear.apply(x, weight, None, a, b, 2.0), (a, b), grad)
    wanted = torch.autograd.grad(2 * x.float() @ a.T @ b.T, (a, b), grad.float())
    for got, true in zip(found, wanted, strict=True):
        assert (got - true).norm() < 1e-3 * true.norm()


# ---- in PEFT's layers ------------------------------------------------------------------------------
def adapted(gemma_path, monkeypatch, fused=True, dropout=0.0, **options):
    """Load a base with adapters of nonzero weights; returns it and the number of calls of :class:`LoRALinear`."""
    calls = []
    if fused:
        apply = LoRALinear.apply
        monkeypatch.setattr(LoRALinear, "apply", lambda *args: calls.append(1) or apply(*args))
    else:
        monkeypatch.setattr("swirl_lightning.adapters.fuse", lambda layers: None)
    backbone = text_backbone(gemma_path, **options)
    torch.manual_seed(0)
    adapters = Adapters(backbone.load_model(), AdapterConfig(r=4, dropout=dropout), backbone.lora_targets)
    for name in adapters.names:
        for parameter in adapters.parameters(name):
            nn.init.normal_(parameter, std=0.05)
    return adapters, calls


def outcome(adapters, training=False, checkpointing=False):
    name = adapters.trainable[1]
    ids = torch.randint(3, 60, (3, 20), generator=torch.Generator().manual_seed(0))
    if checkpointing:
        adapters.model.enable_input_require_grads()
        adapters.model.gradient_checkpointing_enable(
            {"use_reentrant": False, "context_fn": adapters.recompute_contexts}
        )
    with adapters.use(name, training or checkpointing):
        logits = adapters.model(input_ids=ids).logits
    grads = torch.autograd.grad(logits.square().mean(), adapters.parameters(name))
    return logits.detach(), grads


@pytest.mark.parametrize("options", [{}, {"quantization": None}], ids=["nf4", "unquantised"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_model_and_its_gradients_are_as_with_peft(gemma_path, monkeypatch, options, checkpointing):
    with monkeypatch.context() as patch:
        expected, grads = outcome(adapted(gemma_path, patch, fused=False, **options)[0], checkpointing=checkpointing)
    adapters, calls = adapted(gemma_path, monkeypatch, **options)
    logits, own = outcome(adapters, checkpointing=checkpointing)
    assert calls
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(own, grads, rtol=1e-4, atol=1e-6)
    assert max(part.abs().max() for part in own) > 1e-3


def test_peft_computes_what_it_alone_can(gemma_path, monkeypatch):
    adapters, calls = adapted(gemma_path, monkeypatch, dropout=0.5)
    outcome(adapters, training=True)
    assert not calls  # dropout
    outcome(adapters)
    count = len(calls)
    assert count
    with adapters.use(adapters.trainable[0]), torch.no_grad(), adapters.merged(adapters.trainable[0]):
        adapters.model(input_ids=torch.tensor([[3, 4, 5]]))
    with adapters.model.disable_adapter(), torch.no_grad():
        adapters.model(input_ids=torch.tensor([[3, 4, 5]]))
    assert len(calls) == count


def test_sampling_casts_an_adapter_once(gemma_path, monkeypatch):
    adapters, _ = adapted(gemma_path, monkeypatch, quantization=None, dtype="bfloat16")
    name, ids = adapters.trainable[1], torch.tensor([[3, 4, 5]])
    seen = []
    apply = LoRALinear.apply
    monkeypatch.setattr(LoRALinear, "apply", lambda *args: seen.append(args[3].dtype) or apply(*args))
    with adapters.use(name), torch.no_grad():
        expected = adapters.model(input_ids=ids).logits
        with adapters.merged(name):
            found = adapters.model(input_ids=ids).logits
        again = adapters.model(input_ids=ids).logits
    third = len(seen) // 3
    assert seen == [torch.float32] * third + [torch.bfloat16] * third + [torch.float32] * third
    assert torch.equal(found, expected)
    assert torch.equal(again, expected)


@pytest.mark.parametrize(
    ("targets", "told"),
    [(["q_proj", "nosuch"], r"no modules \['nosuch'\] to adapt"), ("", "is empty"), ([], "is empty")],
)
def test_targets_that_are_not_there_are_told(gemma_path, targets, told):
    with pytest.raises(ValueError, match=rf"{told}.*|model.lora.target_modules {told}"):
        Adapters(text_backbone(gemma_path).load_model(), AdapterConfig(r=4, target_modules=targets), "")


@pytest.mark.parametrize("options", [{}, {"quantization": None}], ids=["nf4", "unquantised"])
def test_an_adapter_of_an_embedding_samples_as_it_scores(gemma_path, options):
    backbone = text_backbone(gemma_path, **options)
    adapters = Adapters(backbone.load_model(), AdapterConfig(r=4, target_modules=["embed_tokens", "q_proj"]), "")
    name, ids = adapters.trainable[1], torch.tensor([[3, 4, 5]])
    for parameter in adapters.parameters(name):
        nn.init.normal_(parameter, std=0.05)
    with adapters.use(name), torch.no_grad():
        expected = adapters.model(input_ids=ids).logits
        with adapters.merged(name):
            found = adapters.model(input_ids=ids).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_weights_that_are_not_kept_stay_with_peft(gemma_path, monkeypatch):
    adapters, calls = adapted(gemma_path, monkeypatch, dequantize_once=False)
    outcome(adapters)
    assert not calls
    assert any(isinstance(layer.get_base_layer(), Linear4bit) for layer in adapters._layers)
    assert all(layer.forward.func is lora._forward for layer in adapters._layers)
