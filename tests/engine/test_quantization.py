import pytest
import torch
from bitsandbytes.nn import Linear4bit

from support.tiny import text_backbone
from swirl_lightning.adapters import AdapterConfig, Adapters
from swirl_lightning.engine import quantization
from swirl_lightning.engine.cpu import FEW_ROWS, linear


def load(path, **kwargs):
    return text_backbone(path, **kwargs).load_model()


def test_weights_dequantised_once_compute_the_same(gemma_path):
    torch.manual_seed(0)
    ids = torch.randint(3, 60, (5, 7))
    assert ids.numel() > FEW_ROWS  # fewer are summed in another order
    each, once = load(gemma_path, dequantize_once=False), load(gemma_path, dequantize_once=True)
    packed = [m.weight.data.clone() for m in once.modules() if isinstance(m, Linear4bit)]
    with torch.inference_mode():
        torch.testing.assert_close(once(ids).logits, each(ids).logits, atol=0, rtol=0)
    gradients = []
    for model in (each, once):
        embedded = model.get_input_embeddings()(ids).requires_grad_()
        model(inputs_embeds=embedded).logits.square().sum().backward()
        gradients.append(embedded.grad)
    assert gradients[0].abs().max() > 0
    torch.testing.assert_close(gradients[1], gradients[0], atol=0, rtol=1e-6)
    left = [m.weight.data for m in once.modules() if isinstance(m, Linear4bit)]
    assert all(torch.equal(a.view(torch.uint8), b.view(torch.uint8)) for a, b in zip(packed, left, strict=True))


def test_they_are_kept_on_devices_where_they_fit(gemma_path, monkeypatch):
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    kept = load(gemma_path)
    layers = [m for m in kept.modules() if isinstance(m, Linear4bit)]
    expected = sum(4 * m.in_features * m.out_features for m in layers)
    free = {"cpu": expected / quantization.MEMORY_SHARE, "cuda": expected / quantization.MEMORY_SHARE - 1}
    monkeypatch.setattr(quantization, "_free", lambda device: free[device.type])
    assert quantization.dense_bytes(kept, cpu) == expected
    assert quantization.dense_bytes(kept, gpu) == 0
    free.update(cpu=0, cuda=100 * expected)  # what has been chosen stays
    assert quantization.dense_bytes(kept, cpu) == expected
    assert quantization.dense_bytes(load(gemma_path), gpu) == expected
    assert quantization.dense_bytes(load(gemma_path), cpu) == 0
    assert quantization.dense_bytes(load(gemma_path, dequantize_once=True), cpu) == expected
    assert quantization.dense_bytes(load(gemma_path, dequantize_once=False), gpu) == 0


def test_what_the_allocator_of_a_gpu_keeps_is_free(monkeypatch):
    said = {"mem_get_info": (10, 100), "memory_reserved": 70, "memory_allocated": 30}
    for name, value in said.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    assert quantization._free(torch.device("cuda", 0)) == 50


@pytest.mark.parametrize("once", [None, True, False])
def test_nothing_is_kept_of_an_unquantised_base(gemma_path, once):
    model = load(gemma_path, quantization=None, dequantize_once=once)
    assert quantization.dense_bytes(model, torch.device("cpu")) == 0


# ---- sampling: adapters merged, few rows -----------------------------------------------------------
@pytest.mark.parametrize("once", [True, False])
def test_a_merged_adapter_computes_the_same_and_leaves_no_trace(gemma_path, once):
    backbone = text_backbone(gemma_path, dequantize_once=once)
    adapters = Adapters(backbone.load_model(), AdapterConfig(r=4), backbone.lora_targets)
    for name in adapters.trainable:
        for parameter in adapters.parameters(name):
            torch.nn.init.normal_(parameter, std=0.05)
    ids = torch.randint(3, 60, (3, 20), generator=torch.Generator().manual_seed(0))
    layers = [m for m in adapters.model.modules() if isinstance(m, Linear4bit)]

    def logits():
        return adapters.model(input_ids=ids).logits

    with torch.no_grad(), adapters.use("idm"):
        before = logits()
        dense = [m.dense.weight.clone() for m in layers] if once else []
        with adapters.merged("idm"):
            assert all(m.dense.merged is not None for m in layers) if once else True
            torch.testing.assert_close(logits(), before, atol=1e-4, rtol=1e-5)
        assert all(torch.equal(m.dense.weight, kept) for m, kept in zip(layers, dense, strict=once))
        torch.testing.assert_close(logits(), before, atol=0, rtol=0)
        with adapters.merged("fwm"):
            assert (logits() - before).abs().max() > 1e-3 if once else True


def test_an_adapter_is_merged_in_float32_under_autocast(gemma_path):
    backbone = text_backbone(gemma_path, dequantize_once=True)
    adapters = Adapters(backbone.load_model(), AdapterConfig(r=4), backbone.lora_targets)
    for parameter in adapters.parameters("idm"):
        torch.nn.init.normal_(parameter, std=1e-3)
    layer = adapters._layers[0]
    with torch.no_grad(), adapters.use("idm"), torch.autocast("cpu", torch.bfloat16), adapters.merged("idm"):
        merged = layer.get_base_layer().dense.merged
    delta = layer.get_delta_weight("idm")
    torch.testing.assert_close(merged - layer.get_base_layer().dense.weight, delta, atol=1e-7, rtol=1e-2)
    assert delta.abs().max() > 1e-6


@pytest.mark.parametrize("rows", [1, 3, FEW_ROWS, FEW_ROWS + 1])
@pytest.mark.parametrize("bias", [True, False])
def test_few_rows_are_multiplied_to_the_same_result(rows, bias):
    draw = torch.Generator().manual_seed(rows)
    weight, x = torch.randn(7, 11, generator=draw), torch.randn(rows, 1, 11, generator=draw)
    b = torch.randn(7, generator=draw) if bias else None
    expected = torch.nn.functional.linear(x, weight, b)
    with torch.no_grad():
        found = linear(x, weight, b)
    assert found.is_contiguous()
    torch.testing.assert_close(found, expected)
    assert linear(x.requires_grad_(), weight, b).requires_grad
