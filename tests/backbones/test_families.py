"""Tests of several families, and of the messages for a checkpoint of another family."""

from __future__ import annotations

import pytest
from PIL import Image
from transformers import GraniteConfig, GraniteForCausalLM, Qwen3NextConfig

from support.tiny import byte_tokenizer
from support.tiny_families import CPU, FAMILIES, SIDE, backbone_of, noise_images
from support.tiny_liquid import SIZES
from swirl_lightning.backbones.identity import base_identity
from swirl_lightning.backbones.text import TextLLM


def test_layers_without_keys_and_values_are_refused_before_they_load(tmp_path):
    tokenizer = byte_tokenizer()
    config = Qwen3NextConfig(vocab_size=len(tokenizer), layer_types=["linear_attention", "full_attention"], **SIZES)
    config.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"rollouts share \(linear_attention\); use a base with attention alone"):
        TextLLM(str(tmp_path), quantization=None, dtype="float32").load_model()


@pytest.mark.parametrize("scaling", [1.0, 8.0])
def test_logits_beyond_the_output_layer_are_refused(tmp_path, scaling):
    tokenizer = byte_tokenizer()
    config = GraniteConfig(vocab_size=len(tokenizer), logits_scaling=scaling, **SIZES)
    GraniteForCausalLM(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    backbone = TextLLM(str(tmp_path), quantization=None, dtype="float32")
    if scaling != 1:
        with pytest.raises(ValueError, match="scales or caps"):
            backbone.load_model()
    else:
        backbone.load_model()


@pytest.mark.parametrize("name", ["chat", "emu3", "chameleon", "qwen_vl", "smolvlm"])
def test_a_base_is_the_same_at_any_dtype(tmp_path, name):
    folder = FAMILIES[name].write(tmp_path)
    found = []
    for options in ({"dtype": "float32", "quantization": None}, {"dtype": "bfloat16", "quantization": None}, {}):
        backbone = backbone_of(name, folder, **options)
        found.append(base_identity(backbone.load_model(), backbone))
    assert found[0] == found[1] == found[2]
    assert found[0].keys() == {"architecture", "weights", "files", "vocabulary"}


def test_another_family_is_named(folders):
    for name, folder, wanted in (
        ("emu3", "chat", r"'qwen2' model, needed: \['emu3'\]"),
        ("chameleon", "emu3", "'emu3' model.*use swirl_lightning.backbones.Emu3"),
        ("text", "emu3", "no causal language model; use swirl_lightning.backbones.Emu3"),
        ("text", "chameleon", "use swirl_lightning.backbones.Chameleon"),
    ):
        with pytest.raises(ValueError, match=wanted):
            backbone_of(name, folders[folder]).load_model()


def test_a_truncated_image_is_named(folders, tmp_path):
    noise_images(1, side=64)[0].save(tmp_path / "whole.png")
    (tmp_path / "half.png").write_bytes((tmp_path / "whole.png").read_bytes()[:2000])
    for name in ("emu3", "chameleon"):
        with pytest.raises(ValueError, match=r"half.png.*truncated or damaged"):
            backbone_of(name, folders[name]).encode_states([Image.open(tmp_path / "half.png")], CPU)


def test_other_modes_become_rgb(folders):
    for name in ("emu3", "chameleon"):
        backbone = backbone_of(name, folders[name])
        grey = Image.new("RGBA", (SIDE, SIDE), (0, 0, 0, 0))
        white = Image.new("RGB", (SIDE, SIDE), (255, 255, 255))
        assert backbone.encode_states([grey], CPU) == backbone.encode_states([white], CPU)


def test_backbones_are_imported_when_they_are_asked_for():
    import swirl_lightning.backbones as package

    assert all(getattr(package, name).__name__ == name for name in package.__all__)
    with pytest.raises(AttributeError, match="TextLLM"):
        _ = package.Nothing
