"""What torch's own attention cannot do on some CPUs."""

from __future__ import annotations

import pytest
import torch


def skip_if_torch_cannot_attend(dtype: torch.dtype) -> None:
    """Skip where torch's fused kernel for CPUs fails in bfloat16: ATEN_CPU_CAPABILITY hides the CPU's AVX-512."""
    query = torch.zeros(1, 1, 64, 16, dtype=dtype)
    try:
        torch.nn.functional.scaled_dot_product_attention(query, query, query, attn_mask=query.new_zeros(1, 1, 64, 64))
    except RuntimeError as error:
        pytest.skip(f"torch's own attention fails here: {error}")
