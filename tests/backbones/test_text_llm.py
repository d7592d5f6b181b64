"""Text models: chat templates, pieces of prompts, lengths, and parts that do not fit."""

from __future__ import annotations

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import Gemma3Config, Gemma3ForConditionalGeneration, GemmaForCausalLM, PreTrainedTokenizerFast

from support.tiny import SPECIALS, byte_tokenizer, gemma_folder
from support.tiny_families import CPU, backbone_of
from swirl_lightning import SWIRL, AdapterConfig
from swirl_lightning.adapters import Adapters
from swirl_lightning.backbones import TextLLM
from swirl_lightning.prompts import PromptBuilder, PromptTemplates


def test_chat_template_stands_around_the_prompt(folders):
    backbone = backbone_of("chat", folders["chat"])
    builder = PromptBuilder(backbone, PromptTemplates(fwm="{before}|{action}|", idm="{before}|{after}|"))
    ids = builder.fwm(*[backbone.encode_action(t) for t in ("x", "go")])
    text = backbone.tokenizer.decode(ids)
    assert text == "<|im_start|>user\nx|go|<|im_end|>\n<|im_start|>assistant\n"
    assert backbone.action_grammar.eos == backbone.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert backbone.tokenizer.convert_tokens_to_ids("<|im_start|>") not in backbone.state_grammar.allowed


def test_pieces_that_end_with_a_line_break_are_the_ids_of_the_whole(tmp_path):
    """The tokenizer joins a blank with the word after it, as GPT's and Qwen's do."""
    core = Tokenizer(models.BPE())
    split = Regex(r"""[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+""")
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(split, "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    corpus = ["Before:\nthe red door\nAction:\nopen the red door\nAfter:\nthe open door\n"] * 9
    core.train_from_iterator(
        corpus,
        trainers.BpeTrainer(
            vocab_size=400, special_tokens=SPECIALS, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
        ),
    )
    folder = gemma_folder(tmp_path / "bpe")
    PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>").save_pretrained(folder)
    backbone = backbone_of("text", folder, max_state_tokens=50)
    templates = PromptTemplates(fwm="Before:\n{before}\nAction:\n{action}\nAfter:\n", idm="{before}\n{after}\n")
    x, z = backbone.encode_states(["the red door"], CPU)[0], backbone.encode_action("open")
    whole = "Before:\nthe red door\nAction:\nopen\nAfter:\n"
    assert PromptBuilder(backbone, templates).fwm(x, z) == backbone.encode_text(whole)


def test_lengths_policy(folders):
    state = "0123456789abcdef"
    with pytest.warns(UserWarning, match="state of 16 tokens exceeds the 9"):
        ids = backbone_of("chat", folders["chat"]).encode_states([state], CPU)[0]
    assert backbone_of("chat", folders["chat"]).decode_text(ids) == "01234cdef"
    strict = backbone_of("chat", folders["chat"], too_long="error")
    with pytest.raises(ValueError, match="raise max_state_tokens"):
        strict.encode_states([state], CPU)
    with pytest.raises(ValueError, match="raise max_action_tokens"):
        strict.encode_action(state)
    with pytest.raises(ValueError, match="too_long must be one of"):
        backbone_of("chat", folders["chat"], too_long="wrap")
    with pytest.raises(ValueError, match=r"max_action_tokens must lie in \[2, 1048576\] or null"):
        backbone_of("chat", folders["chat"], max_action_tokens=1)


def test_parts_that_do_not_fit_are_named(broken, tmp_path):
    folder = broken("chat")
    tokenizer = byte_tokenizer(["<|im_start|>", "<|im_end|>", *[f"<more{n}>" for n in range(20)]])
    tokenizer.save_pretrained(folder)
    with pytest.raises(ValueError, match="use its own tokenizer files"):
        backbone_of("chat", folder).load_model()
    tokenizer.eos_token = None
    tokenizer.save_pretrained(folder)
    with pytest.raises(ValueError, match="lacks eos_token"):
        backbone_of("chat", folder).load_model()


def test_adapters_go_where_they_have_an_effect(tmp_path):
    """Gemma 3 has a vision tower, which no text goes through; the output layer's weight is used without an adapter."""
    tokenizer = byte_tokenizer()
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2}
    text = {"vocab_size": len(tokenizer), "num_hidden_layers": 1, "num_key_value_heads": 2, "head_dim": 16, **sizes}
    vision = {"num_hidden_layers": 1, "image_size": 16, "patch_size": 8, **sizes}
    config = Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)
    Gemma3ForConditionalGeneration(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)

    def adapted(targets):
        backbone = TextLLM(str(tmp_path), dtype="float32", max_state_tokens=8, max_action_tokens=8)
        module = SWIRL(backbone, lora=AdapterConfig(r=2, target_modules=targets))
        module.configure_model()
        return {name for name, _ in module.adapters.model.named_parameters() if ".lora_A.fwm." in name}

    for targets, count in ((None, 7), (["q_proj", "v_proj"], 2)):  # the tower has such modules, too
        assert len(adapted(targets)) == count
        assert all(".language_model.layers." in name for name in adapted(targets))
    for target in ("fc1", "lm_head"):
        with pytest.raises(ValueError, match=rf"no modules \['{target}'\] to adapt in model.language_model"):
            adapted([target, "q_proj"])
    tied = GemmaForCausalLM.from_pretrained(gemma_folder(tmp_path / "tied"))
    with pytest.raises(ValueError, match="adapters on lm_head have no effect; name modules of model"):
        Adapters(tied, AdapterConfig(r=2, target_modules=["q_proj", "lm_head"]), "", trunk=tied.model)
