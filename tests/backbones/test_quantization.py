import pytest
import torch
from bitsandbytes.nn import Linear4bit

from swirl_lightning.backbones import quantization
from tiny import text_backbone


def load(path, **kwargs):
    return text_backbone(path, **kwargs).load_model()


def test_weights_dequantised_once_compute_the_same(gemma_path):
    torch.manual_seed(0)
    ids = torch.randint(3, 60, (3, 7))
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


def test_on_cpus_they_are_kept_where_they_fit(gemma_path, monkeypatch):
    kept = load(gemma_path)
    layers = [m for m in kept.modules() if isinstance(m, Linear4bit)]
    expected = sum(4 * m.in_features * m.out_features for m in layers)
    assert quantization.dense_bytes(kept, torch.device("cpu")) == expected
    assert quantization.dense_bytes(kept, torch.device("cuda")) == 0
    monkeypatch.setattr(quantization, "MEMORY_SHARE", 0.0)
    assert quantization.dense_bytes(load(gemma_path), torch.device("cpu")) == 0
    assert quantization.dense_bytes(load(gemma_path, dequantize_once=True), torch.device("cuda")) == expected


@pytest.mark.parametrize("once", [None, True, False])
def test_nothing_is_kept_of_an_unquantised_base(gemma_path, once):
    model = load(gemma_path, quantization=None, dequantize_once=once)
    assert quantization.dense_bytes(model, torch.device("cpu")) == 0
