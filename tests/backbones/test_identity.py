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
    assert found[0]["files"].startswith("safetensors:")


def test_a_base_whose_layers_were_trained_on_is_another(folder):
    """As a merged export is: its embedding is that of its base."""

    def edit(tensors):
        tensors["model.layers.1.mlp.up_proj.weight"] += 0.01 * torch.randn(128, 64)

    assert differing(identity(folder), identity(changed(folder, edit))) == ["weights"]


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
