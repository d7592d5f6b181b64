"""Linear layers with an adapter on the phantom device, with weights in four bits that are kept dequantised or not."""

from __future__ import annotations

import pytest
import torch

from support.phantom.device import CPU, CUDA, PhantomCuda
from support.tiny import text_backbone
from swirl_lightning.adapters import AdapterConfig, Adapters
from swirl_lightning.engine.lora import LoRALinear
from swirl_lightning.engine.quantization import Packed

IDS = [[3, 4, 5, 9, 8], [7, 7, 20, 21, 22]]


def outcome(gemma_path, device, checkpointing=False, **options):
    """Logits while scoring and while sampling, and gradients."""
    backbone = text_backbone(gemma_path, **options)
    adapters = Adapters(backbone.load_model().to(device), AdapterConfig(r=4), backbone.lora_targets)
    generator = torch.Generator().manual_seed(0)
    for parameter in [p for name in adapters.names for p in adapters.parameters(name)]:
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.05)
    if checkpointing:
        adapters.model.enable_input_require_grads()
        adapters.model.gradient_checkpointing_enable(
            {"use_reentrant": False, "context_fn": adapters.recompute_contexts}
        )
    name, ids = adapters.trainable[1], torch.tensor(IDS, device=device)
    with adapters.use(name), torch.no_grad(), adapters.merged(name):
        drawn_from = adapters.model(input_ids=ids).logits
    with adapters.use(name, training=checkpointing):
        logits = adapters.model(input_ids=ids).logits
    grads = torch.autograd.grad(logits.square().mean(), adapters.parameters(name))  # another adapter is active
    return [part.detach().to(CPU) for part in (drawn_from, logits, *grads)]


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("once", [None, False])
def test_a_device_computes_what_peft_does_on_a_cpu(once, checkpointing, gemma_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("swirl_lightning.adapters.fuse", lambda layers: None)
        expected = outcome(gemma_path, CPU, dequantize_once=False)
    weights, apply = [], LoRALinear.apply
    monkeypatch.setattr(LoRALinear, "apply", lambda *args: weights.append(args[1]) or apply(*args))
    with PhantomCuda():
        found = outcome(gemma_path, CUDA, checkpointing, dequantize_once=once)
    assert {isinstance(weight, Packed) for weight in weights} == {once is False}
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert max(part.abs().max() for part in found[2:]) > 1e-3


def test_weights_are_kept_where_there_is_room_on_the_device(gemma_path, monkeypatch):
    weights, apply = [], LoRALinear.apply
    monkeypatch.setattr(LoRALinear, "apply", lambda *args: weights.append(args[1]) or apply(*args))
    with PhantomCuda():
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *_: (1000, 1 << 40))
        outcome(gemma_path, CUDA)
    assert weights
    assert all(isinstance(weight, Packed) for weight in weights)
