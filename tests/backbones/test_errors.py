"""Damaged and crafted files of a base: one error that names the base, whatever transformers makes of them."""

from __future__ import annotations

import json
import os

import pytest
import torch
from safetensors.torch import load_file, save_file

from support.tiny import gemma_folder, text_backbone
from support.tiny_families import CPU, FAMILIES, backbone_of, noise_images
from swirl_lightning import SWIRL
from swirl_lightning.backbones.errors import readable

JSON = ("{", "[]", "null", '"x"', "[" * 100_000, "\xff")
VALUES = {
    "hidden_size": (0, -1, "big", 2**62, None),
    "vocab_size": (0, "many", 7),
    "num_attention_heads": (0, None, 3),
    "num_hidden_layers": ("two",),
    "hidden_activation": ("unheard_of", 5),
    "rope_parameters": ({"rope_type": "unheard_of"}, 5),
    "rms_norm_eps": ("x",),
    "pad_token_id": (10**9, "x"),
    "model_type": (["gemma"], 5, "unheard_of"),
    "dtype": ("os.system", 5),
    "quantization_config": (5, "x", [1], {"bnb_4bit_compute_dtype": "os.system"}, {"quant_method": "unheard_of"}),
    "_attn_implementation": (5, ["eager"]),
    "output_attentions": (True,),
    "return_dict": (False,),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return gemma_folder(tmp_path_factory.mktemp("errors"))


def configured(folder, quantization=None):
    module = SWIRL(text_backbone(folder, quantization=quantization))
    module.configure_model()
    return module.predict_state("01", "up")


@pytest.fixture
def broken(folder, tmp_path):
    """Write one file of a copy of the base."""
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())

    def write(name, text):
        (tmp_path / name).write_bytes(text.encode("latin-1"))
        return tmp_path

    return write


@pytest.mark.parametrize("text", JSON, ids=range(len(JSON)))
@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"])
def test_damaged_json_is_told_or_changes_nothing(broken, name, text):
    path = broken(name, text)
    try:
        configured(path)
    except (ValueError, OSError) as error:
        assert str(path) in str(error)  # noqa: PT017


@pytest.mark.parametrize(
    ("key", "value"), [pytest.param(key, v, id=f"{key}-{v}"[:40]) for key, values in VALUES.items() for v in values]
)
def test_values_of_a_config_are_told_or_can_be_used(broken, folder, key, value):
    given = json.loads((folder / "config.json").read_text())
    path = broken("config.json", json.dumps({**given, key: value}))
    try:
        configured(path)
    except (ValueError, OSError) as error:
        assert str(path) in str(error)  # noqa: PT017


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            lambda name, weight: None if "mlp" in name else weight,
            r"lack 3 weights \(.*mlp.*would be random",
        ),
        (lambda name, weight: None, "which would be random"),
        (lambda name, weight: weight * torch.nan, "other values than finite numbers"),
        (lambda name, weight: weight * 0, "no usable numbers"),
    ],
    ids=["without MLPs", "empty", "NaN", "zero"],
)
def test_a_base_without_its_weights_is_told(folder, broken, change, told):
    weights = load_file(folder / "model.safetensors")
    path = broken("config.json", (folder / "config.json").read_text())
    kept = {name: new for name, weight in weights.items() if (new := change(name, weight)) is not None}
    save_file(kept, path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=told) as error:
        configured(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("shard", ["/dev/zero", "../model.safetensors", "pipe", "missing"])
def test_an_index_leads_to_files_of_its_folder_alone(folder, broken, shard):
    path = broken("model.safetensors.index.json", json.dumps({"weight_map": {"model.norm.weight": shard}}))
    (path / "model.safetensors").unlink()
    os.mkfifo(path / "pipe")
    with pytest.raises(ValueError, match="is no file of that folder") as error:
        configured(path)
    assert str(path) in str(error.value)


def test_weights_that_are_cut_off_are_told(folder, broken):
    whole = (folder / "model.safetensors").read_bytes()
    for content in (whole[: len(whole) // 2], whole[:4], b"", b"no tensors at all" * 9):
        path = broken("model.safetensors", content.decode("latin-1"))
        with pytest.raises((ValueError, OSError)) as error:
            configured(path)
        assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ({"quant_method": "awq", "bits": 4}, "awq"),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "bitsandbytes to 8 bits"),
    ],
)
def test_a_base_that_is_quantised_already_is_told(folder, broken, said, told):
    given = json.loads((folder / "config.json").read_text())
    path = broken("config.json", json.dumps({**given, "quantization_config": said}))
    with pytest.raises(ValueError, match=f"quantised already, by '{told}'; give the model that it was made from"):
        configured(path)


def test_weights_that_are_no_finite_numbers_are_told(folder, broken):
    path = broken("config.json", (folder / "config.json").read_text())
    weights = load_file(path / "model.safetensors")
    weights["model.norm.weight"][3] = float("nan")
    save_file(weights, path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"model\.norm\.weight of .* holds other values than finite numbers") as error:
        configured(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("quantization", [None, "nf4"])
def test_a_base_that_is_not_quantised_as_it_says_is_told(folder, broken, quantization):
    given = json.loads((folder / "config.json").read_text())
    said = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    path = broken("config.json", json.dumps({**given, "quantization_config": said}))
    told = "is made for 4-bit weights, and its own are whole: .* says that they are quantised"
    with pytest.raises(ValueError, match=told) as error:
        configured(path, quantization=quantization)
    assert str(path) in str(error.value)


def test_what_names_the_model_stays_as_it_is():
    for error in (ValueError("a/b: no"), OSError("no"), ImportError("no"), MemoryError()):
        with pytest.raises(type(error)) as told, readable("a/b"):
            raise error
        assert told.value is error


@pytest.mark.parametrize("name", ["qwen_vl", "smolvlm", "emu3"])
def test_files_of_an_image_processor_are_told(name, tmp_path):
    """Values that show in use, and a file that is not there, all before the base is loaded."""
    path = FAMILIES[name].write(tmp_path)
    file = path / "preprocessor_config.json"
    given = json.loads(file.read_text())
    spoilt = [
        {"rescale_factor": "x"},
        {"image_mean": 0.5, "image_std": []},
        {"image_processor_type": "CLIPImageProcessor"},
    ]
    spoilt += [{"rescale_factor": 0}, {"image_mean": [float("nan")] * 3}, {"image_std": [0.0] * 3}]
    spoilt += [{"patch_size": 0}, {"merge_size": "x"}, {"patch_size": -2}] if name == "qwen_vl" else []
    for values in spoilt:
        file.write_text(json.dumps(given | values))
        with pytest.raises((ValueError, OSError)) as error:
            backbone_of(name, path, quantization=None).load_model()
        assert str(path) in str(error.value), values
    file.unlink()
    with pytest.raises(OSError, match=str(path)):
        backbone_of(name, path, quantization=None).load_model()


def test_an_image_processor_of_another_base_is_told(tmp_path):
    path = FAMILIES["qwen_vl"].write(tmp_path)
    file = path / "preprocessor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"patch_size": 4}))
    backbone = backbone_of("qwen_vl", path, quantization=None)
    with pytest.raises(ValueError, match="cannot be loaded") as error:
        backbone._features(backbone.load_model(), noise_images(1), CPU)
    assert str(path) in str(error.value)
