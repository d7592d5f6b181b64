"""The class of Liquid-7B with random weights in NF4, made on the device layer by layer: nothing touches the disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from bitsandbytes.nn import Linear4bit, Params4bit
from torch import nn
from transformers import GemmaConfig, GemmaForCausalLM, PreTrainedModel
from transformers.integrations import replace_with_bnb_linear

from perf.common import Case, Ids, randomize, templates
from swirl_lightning import SWIRL, AdapterConfig, GRPOConfig, SamplingConfig
from swirl_lightning.engine.quantization import prepare_quantized

LIQUID = Case(
    "gemma", 3072, 24576, 28, 16, 264_192, 8192, 1100, 1024, 64, 12, 1, rank=64, dtype="bfloat16", width_of_heads=256
)
REHEARSED = Case("gemma", 64, 128, 2, 2, 512 + 64, 64, 60, 24, 8, 4, 1, rank=8, dtype="bfloat16", width_of_heads=32)


class Random(Ids):
    """Backbone whose weights are drawn where they are used."""

    def __init__(self, case: Case, device: str, **options: Any) -> None:
        super().__init__(case, Path())
        self.device = device
        for name, value in options.items():
            setattr(self, name, value)

    def load_model(self) -> PreTrainedModel:
        """Draw one weight after the other, and quantise it at once."""
        case = self.case
        config = GemmaConfig(
            vocab_size=case.vocabulary,
            hidden_size=case.hidden,
            intermediate_size=case.intermediate,
            num_hidden_layers=case.layers,
            num_attention_heads=case.heads,
            num_key_value_heads=case.heads,
            head_dim=case.head_dim,
            attn_implementation="sdpa",
        )
        with torch.device("meta"):
            model: Any = GemmaForCausalLM(config).to(self.dtype)
        model = replace_with_bnb_linear(model, ["lm_head"], self.quantization_config())
        for module in model.modules():
            for name, parameter in list(module.named_parameters(recurse=False)):
                setattr(module, name, self._drawn(module, parameter))
            for name, buffer in list(module.named_buffers(recurse=False)):
                if name == "embed_scale":
                    setattr(module, name, torch.full_like(buffer, case.hidden**0.5, device=self.device))
        model.model.rotary_emb = type(model.model.rotary_emb)(config).to(self.device)
        model.lm_head.weight = model.model.embed_tokens.weight
        model.is_loaded_in_4bit = True
        return prepare_quantized(model.eval(), self.dequantize_once)

    def _drawn(self, module: nn.Module, parameter: Any) -> nn.Parameter:
        packs = isinstance(module, Linear4bit)
        shape = (module.out_features, module.in_features) if packs else parameter.shape
        drawn = torch.empty(shape, dtype=self.dtype, device=self.device).normal_(0, 0.02)
        if not packs:
            return nn.Parameter(drawn, requires_grad=False)
        kind = {"quant_type": "nf4", "compress_statistics": True, "quant_storage": self.dtype}
        packed: nn.Parameter = Params4bit(drawn, requires_grad=False, module=module, **kind).to(self.device)
        return packed


def liquid(device: str, small: bool, backbone: dict[str, Any] | None = None, **options: Any) -> SWIRL:
    """Build SWIRL on it with random adapters; ``backbone`` are options of the backbone, ``options`` of SWIRL."""
    case = REHEARSED if small else LIQUID
    module = SWIRL(
        Random(case, device, **(backbone or {})),
        lora=AdapterConfig(r=case.rank, alpha=2 * case.rank),
        grpo=GRPOConfig(group_size=8, idm_group_size=16),
        sampling=SamplingConfig(0.75, 1.0),
        templates=templates(case),
        **options,
    )
    module.configure_model()
    module = module.to(device)
    randomize(p for name in module.adapters.names for p in module.adapters.parameters(name))
    return module
