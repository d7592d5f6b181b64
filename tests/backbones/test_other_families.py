"""Families of transformers that are named nowhere here: they work, or are refused with the true reason."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BartConfig,
    BartForCausalLM,
    BioGptConfig,
    BioGptForCausalLM,
    BloomConfig,
    BloomForCausalLM,
    Llama4ForCausalLM,
    Llama4TextConfig,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from support.tiny import byte_tokenizer, text_backbone
from swirl_lightning import SWIRL
from swirl_lightning.exports.merged import write_merged

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "initializer_range": 0.3,
}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 64}
BART = {"d_model": 64, "decoder_layers": 1, "decoder_attention_heads": 4, "decoder_ffn_dim": 64, "init_std": 0.3}
FAMILIES = {
    "qwen3_moe": (Qwen3MoeForCausalLM, Qwen3MoeConfig, {**SIZES, **EXPERTS, "num_experts": 4}),
    "bloom": (BloomForCausalLM, BloomConfig, {"hidden_size": 64, "n_layer": 1, "n_head": 4, "initializer_range": 0.3}),
    "bart": (BartForCausalLM, BartConfig, BART),
    "biogpt": (BioGptForCausalLM, BioGptConfig, SIZES),
    "llama4": (Llama4ForCausalLM, Llama4TextConfig, {**SIZES, "num_local_experts": 2, "intermediate_size_mlp": 64}),
}


@pytest.fixture
def folder(tmp_path, request):
    """Checkpoint of a family, with its tokenizer."""
    make, config, sizes = FAMILIES[request.param]
    tokenizer = byte_tokenizer()
    torch.manual_seed(0)
    special = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}
    make(config(vocab_size=len(tokenizer), **special, **sizes)).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def module_of(folder, **options):
    module = SWIRL(text_backbone(folder, **options))
    module.configure_model()
    return module


@pytest.mark.parametrize(
    ("folder", "options"),
    [("qwen3_moe", {}), ("bloom", {"attn_implementation": "eager"}), ("biogpt", {})],
    indirect=["folder"],
)
def test_prompts_of_several_lengths_are_scored_as_by_the_plain_model(folder, options):
    module = module_of(folder, quantization=None, **options)
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    prompts, completions = [[2, 40, 41], [2, 50, 51, 52, 53, 54, 55, 56, 57]], [[60, 61, 1], [62, 63, 64, 65]]
    scored = module.models.fwm.score_ids(prompts, completions)
    for n, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        logits = plain(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1].double()
        logits = logits[:, list(module.models.fwm.grammar.allowed)].log_softmax(1)
        places = [module.models.fwm.grammar.allowed.index(token) for token in completion]
        wanted = logits[range(len(completion)), places].float()
        torch.testing.assert_close(scored.values[n, : len(completion)], wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("folder", ["qwen3_moe"], indirect=True)
def test_weights_that_stay_whole_are_told(folder, tmp_path):
    with pytest.warns(UserWarning, match=r"base': \d\d% of its layers' weights stay in .*mlp\.experts.*linear layers"):
        module = module_of(folder)
    with pytest.raises(ValueError, match=r"experts.* has no weight of its own to merge an adapter into: leave out"):
        write_merged(module, tmp_path / "merged", "data", {})


@pytest.mark.parametrize(
    ("folder", "options", "told"),
    [
        ("bloom", {}, "knows no such attention: set attn_implementation of model.backbone to eager"),
        ("bart", {}, "its positions are numbers of places"),
        ("biogpt", {"quantization": "nf4"}, "or the layer shares its weights with an embedding"),
        ("llama4", {}, "its logits cannot be had of its trunk and output layer alone .*write a class of your own"),
    ],
    indirect=["folder"],
)
def test_what_cannot_serve_is_refused_with_the_true_reason(folder, options, told):
    with pytest.raises(ValueError, match=told) as error:
        module_of(folder, **({"quantization": None} | options))
    assert str(folder) in str(error.value)


@pytest.mark.parametrize("folder", ["qwen3_moe"], indirect=True)
def test_positions_that_do_not_reach_are_told(folder):
    with pytest.warns(UserWarning, match=r"has 32768 positions, and two states with an action may take 32776 tokens"):
        module_of(folder, max_state_tokens=16_384, max_action_tokens=8)


def test_ids_that_a_tokenizer_leaves_out_are_no_text(tmp_path):
    """As those of a larger vocabulary that has been cut."""
    tokenizer = byte_tokenizer()
    backbone = text_backbone(tmp_path)
    backbone.tokenizer = tokenizer
    vocabulary = dict(tokenizer.get_vocab())
    eos = vocabulary.pop("<eos>")
    tokenizer.get_vocab = lambda: {**vocabulary, "<eos>": eos, "far": 700}
    assert 700 in backbone.state_grammar.allowed
    assert len(backbone.state_grammar.allowed) == len(vocabulary) + 2 - len({"<pad>", "<bos>"})
