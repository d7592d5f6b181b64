"""Hashes of a base: equal for copies, different for another base of the same shape."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from support.tiny import gemma_folder, text_backbone
from swirl_lightning.backbones.identity import base_identity, differing, weight_files


def identity(folder, **options):
    backbone = text_backbone(folder, **options)
    return base_identity(backbone.load_model(), backbone)


@pytest.fixture
def folder(tmp_path):
    return gemma_folder(tmp_path / "base", layers=2)


def changed(folder, edit):
    """A copy whose tensors ``edit`` has changed."""
    other = shutil.copytree(folder, folder.parent / "other")
    tensors = load_file(other / "model.safetensors")
    edit(tensors)
    save_file(tensors, other / "model.safetensors", metadata={"format": "pt"})
    return other


@pytest.mark.parametrize("options", [{"dtype": torch.bfloat16}, {"max_shard_size": "100KB"}])
def test_a_copy_in_another_type_or_other_files_is_the_same_base(folder, tmp_path, options):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).to(options.get("dtype", torch.float32))
    for kind in ("one", "other"):
        shutil.copytree(folder, tmp_path / kind, ignore=shutil.ignore_patterns("model*"))
    model.save_pretrained(tmp_path / "one")
    model.save_pretrained(tmp_path / "other", max_shard_size=options.get("max_shard_size", "5GB"))
    if "max_shard_size" in options:
        assert len(weight_files(text_backbone(tmp_path / "other"))) > 1
    found = [identity(tmp_path / kind) for kind in ("one", "other")]
    assert found[0] == found[1]
    assert found[0].keys() == {"architecture", "weights", "files", "vocabulary"}
    assert found[0]["files"].startswith("tensors:")


def test_a_base_whose_layers_were_trained_on_is_another(folder):
    """As a merged export is: its embedding is that of its base."""

    def edit(tensors):
        tensors["model.layers.1.mlp.up_proj.weight"] += 0.01 * torch.randn(128, 64)

    assert differing(identity(folder), identity(changed(folder, edit))) == ["weights"]


def exchange(tensors, one, other):
    for name in [name for name in tensors if one in name]:
        there = name.replace(one, other)
        tensors[name], tensors[there] = tensors[there], tensors[name]


@pytest.mark.parametrize(
    "edit",
    [
        lambda t: exchange(t, "layers.0", "layers.1"),
        lambda t: exchange(t, "k_proj", "v_proj"),
        lambda t: t["model.layers.0.input_layernorm.weight"].add_(1.0),
        lambda t: t["model.norm.weight"].add_(1.0),
    ],
    ids=["layers", "keys and values", "a layer's norm", "the last norm"],
)
def test_every_weight_counts_and_where_it_stands(folder, edit):
    assert differing(identity(folder), identity(changed(folder, edit))) == ["weights"]


@pytest.mark.parametrize(
    "left",
    [
        {"model.rotary_emb.inv_freq": torch.ones(8), "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)},
        {"model.layers.0.attn.bias": torch.ones(1, 1, 8, 8, dtype=torch.bool)},  # GPT-2's mask
        {"model.layers.0.none.weight": torch.ones(4, 0, 5)},
    ],
    ids=["frequencies", "mask", "empty"],
)
def test_what_is_no_weight_does_not_count(folder, left):
    assert not differing(identity(folder), identity(changed(folder, lambda t: t.update(left))))


@pytest.mark.parametrize("dtype", ["F4", "F6_E2M3"])
def test_tensors_of_a_type_that_torch_lacks_are_no_obstacle(folder, dtype):
    other = shutil.copytree(folder, folder.parent / "other")
    content = (other / "model.safetensors").read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    end = max(entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__")
    size = 32 if dtype == "F4" else 48
    header["model.none.weight"] = {"dtype": dtype, "shape": [8, 8], "data_offsets": [end, end + size]}
    words = json.dumps(header).encode()
    whole = len(words).to_bytes(8, "little") + words + content[8 + length :] + bytes(size)
    (other / "model.safetensors").write_bytes(whole)
    assert identity(other)["files"]


@pytest.mark.parametrize(
    "left",
    [{"use_cache": False}, {"architectures": None}, {"fixed_by": "a program"}, {"torch_dtype": "float16"}],
    ids=str,
)
def test_what_programs_leave_in_a_config_is_no_architecture(folder, left):
    other = shutil.copytree(folder, folder.parent / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | left))
    assert not differing(identity(folder), identity(other))
    (other / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 0.5}))
    assert differing(identity(folder), identity(other)) == ["architecture"]


def test_a_tied_weight_may_be_saved_twice(folder):
    other = changed(folder, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].clone()}))
    assert not differing(identity(folder), identity(other))


def test_another_tokenizer_is_another_vocabulary(folder):
    other = shutil.copytree(folder, folder.parent / "other")
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    words = tokenizer["model"]["vocab"]
    words["1"], words["2"] = words["2"], words["1"]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert differing(identity(folder), identity(other)) == ["vocabulary"]
    before = text_backbone(folder).fingerprint()
    shutil.copy(other / "tokenizer.json", folder)  # under the same name: states kept as ids of the old one are no use
    assert text_backbone(folder).fingerprint() != before


def test_what_one_of_them_was_not_hashed_by_is_not_compared():
    old = {"architecture": "a", "weights": "b"}
    new = {**old, "files": "safetensors:c", "vocabulary": "d"}
    assert not differing(old, new)
    assert not differing({**new, "files": "gguf:e"}, new)
    assert not differing(new, {})
    assert differing({**new, "files": "safetensors:e", "weights": "f"}, new) == ["weights"]
    assert (
        differing({**old, "weights": "f"}, new)
        == differing({**new, "files": "gguf:e", "weights": "f"}, new)
        == ["weights"]
    )


def test_a_base_is_the_same_in_float16(folder):
    """Its embedding is rounded twice then: by the type of computation, and for the hash."""
    found = [identity(folder, dtype=dtype, quantization=None) for dtype in ("float32", "float16")]
    assert found[0]["weights"] != found[1]["weights"]
    assert not differing(*found)


def test_weights_that_are_neither_safetensors_nor_gguf_are_not_hashed(folder):
    (folder / "model.safetensors").rename(folder / "weights.bin")
    assert weight_files(text_backbone(folder)) == []
