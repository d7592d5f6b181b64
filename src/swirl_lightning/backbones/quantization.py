"""What has to be done to a 4-bit base before its first forward."""

from __future__ import annotations

from transformers import PreTrainedModel


def prepare_quantized(model: PreTrainedModel) -> PreTrainedModel:
    """Freeze the base, and keep bitsandbytes from repacking its weights on CPUs with AVX512-BF16.

    There an eval-mode forward would repack `Linear4bit` weights in place, and later training forwards would
    use an op without autograd: generate-then-update would lose its gradients with no more than a warning.
    """
    model.requires_grad_(False)
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            setattr(module, "support_avx512bf16_for_cpu", False)  # noqa: B010 - a bitsandbytes attribute
    return model
