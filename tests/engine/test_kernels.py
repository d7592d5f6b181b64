"""Kernels of attention: which one is chosen, and that those of devices that are not here are called as torch says."""

import pytest
import torch

from swirl_lightning.engine import kernels

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _chosen_anew():
    kernels.kernel.cache_clear()
    yield
    kernels.kernel.cache_clear()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [8, 20, 256])
def test_flash_attention_agrees_with_products_or_says_why_it_cannot(dtype, size):
    """ATEN_CPU_CAPABILITY can hide what its halves need; the products are tried by hand in test_attention.py."""
    try:
        assert kernels._error(kernels.CPU, CPU, dtype, size) < 16 * torch.finfo(dtype).eps
    except RuntimeError:
        assert dtype.itemsize == 2
        with pytest.warns(UserWarning, match="takes longer and more memory"):
            assert kernels.kernel(CPU, dtype, size) is kernels.PRODUCTS
    else:
        assert kernels.kernel(CPU, dtype, size) is kernels.CPU


def test_a_kernel_that_is_wrong_or_missing_is_not_used(monkeypatch):
    def backward(*args):
        query, key, value = kernels.CPU.backward(*args)
        return query, key * 1.001, value

    monkeypatch.setitem(kernels.FLASH, "cpu", kernels.Kernel(kernels.CPU.forward, backward))
    with pytest.warns(UserWarning, match=r"on cpu with torch.float32 and heads of 8 \(it is off by"):
        assert kernels.kernel(CPU, torch.float32, 8) is kernels.PRODUCTS
    nothing = kernels.Kernel(kernels.CPU.forward, lambda *_: 3 * (torch.tensor(torch.nan),))
    monkeypatch.setitem(kernels.FLASH, "cpu", nothing)
    with pytest.warns(UserWarning, match=r"heads of 12 \(it is off by nan"):
        assert kernels.kernel(CPU, torch.float32, 12) is kernels.PRODUCTS
    monkeypatch.setitem(kernels.FLASH, "cpu", kernels.CUDA)  # there is no such kernel for this device
    with pytest.warns(UserWarning, match="heads of 16"):
        assert kernels.kernel(CPU, torch.float32, 16) is kernels.PRODUCTS
    assert kernels.kernel(torch.device("meta"), torch.float32, 8) is kernels.PRODUCTS


@pytest.mark.parametrize("causal", [True, False])
def test_what_cuda_is_asked_for_fits_its_signature(causal):
    """Tensors without numbers: torch checks the arguments, and gives the shapes."""
    query, key = (torch.empty(2, 3, length, 64, dtype=torch.bfloat16, device="meta") for length in (7, 7 + 4 * causal))
    out, lse = kernels.CUDA.forward(query, key, key, causal, 0.2)
    assert (out.shape, lse.shape, lse.dtype) == (query.shape, query.shape[:3], torch.float32)
    grads = kernels.CUDA.backward(query, query, key, key, out, lse, causal, 0.2)
    assert [grad.shape for grad in grads] == [query.shape, key.shape, key.shape]
