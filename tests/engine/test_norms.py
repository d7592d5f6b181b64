import pytest
import torch
from torch import nn
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm

from swirl_lightning.engine import norms
from swirl_lightning.engine.norms import fuse_norms


class OtherRMSNorm(LlamaRMSNorm):
    def forward(self, hidden_states):
        return super().forward(hidden_states) + 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", [GemmaRMSNorm, LlamaRMSNorm, Qwen2RMSNorm])
def test_the_fused_norm_computes_and_differentiates_what_the_model_s_does(kind, dtype):
    torch.manual_seed(0)
    norm = kind(48, eps=1e-3)
    nn.init.normal_(norm.weight)
    norm.requires_grad_(False).to(dtype)
    x, grad = torch.randn(2, 5, 48).to(dtype).requires_grad_(), torch.randn(2, 5, 48).to(dtype)
    expected = norm(x)
    assert fuse_norms(nn.Sequential(norm)) == 1
    assert torch.equal(norm(x), expected)  # on a CPU its own
    _, chosen, eps = norm.forward.args
    found = chosen(norm.fused_scale, x, eps)
    assert found.dtype == expected.dtype
    close = {"rtol": 1e-5, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 0.02, "atol": 0.02}
    torch.testing.assert_close(found, expected, **close)
    wanted, got = (torch.autograd.grad(out, x, grad)[0] for out in (expected, found))
    torch.testing.assert_close(got, wanted, **close)


class GatedRMSNorm(LlamaRMSNorm):
    def forward(self, hidden_states, gate=None):
        out = super().forward(hidden_states)
        return out if gate is None else out * gate


class AddedRMSNorm(LlamaRMSNorm):
    def forward(self, hidden_states, residual):
        return super().forward(hidden_states + residual)


def test_a_norm_may_take_more_than_what_it_normalises():
    x, norm = torch.randn(2, 8), GatedRMSNorm(8)
    assert fuse_norms(nn.Sequential(norm)) == 1
    torch.testing.assert_close(norm(x, x), norm(x) * x)
    torch.testing.assert_close(norm(hidden_states=x, gate=x), norm(x) * x)


def test_what_computes_something_else_is_left_alone():
    model = nn.Sequential(OtherRMSNorm(8), AddedRMSNorm(8), nn.LayerNorm(8))
    assert fuse_norms(model) == 0
    assert norms._same(nn.RMSNorm(8, eps=1e-6), 1e-6) is not None


@pytest.mark.parametrize("kind", [GemmaRMSNorm, LlamaRMSNorm])
def test_a_norm_that_autocast_computes_in_float32_is_of_its_inputs_type(kind, monkeypatch):
    """As the model's own; CUDA's autocast has rms_norm among what it computes in float32, the CPU's has not."""
    plain = nn.functional.rms_norm
    monkeypatch.setattr(nn.functional, "rms_norm", lambda x, *args: plain(x.float(), *args))
    norm, x = kind(8, eps=1e-3).bfloat16(), torch.randn(2, 8).bfloat16()
    assert fuse_norms(nn.Sequential(norm)) == 1
    _, chosen, eps = norm.forward.args
    assert chosen(norm.fused_scale, x, eps).dtype == torch.bfloat16
