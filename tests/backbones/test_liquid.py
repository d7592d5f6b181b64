"""Liquid over a small random checkpoint in the published on-disk format."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from support.tiny import byte_tokenizer
from support.tiny_liquid import SIDE, liquid_folder, noise_images, vqgan
from swirl_lightning.backbones.liquid import Liquid
from swirl_lightning.backbones.vqgan import VQGAN, VQGANConfig, VQGANError
from swirl_lightning.prompts import PromptBuilder, PromptTemplates

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return liquid_folder(tmp_path_factory.mktemp("liquid"))


@pytest.fixture
def broken(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "broken"))


def liquid(path: Path, **kwargs: object) -> Liquid:
    return Liquid(str(path), **({"dtype": "float32"} | kwargs))  # type: ignore[arg-type]


def test_states_are_codes_at_the_end_of_the_vocabulary(folder: Path) -> None:
    backbone = liquid(folder, encode_batch=2)
    ids = backbone.encode_states(noise_images(5), CPU)
    assert [len(i) for i in ids] == [16] * 5
    assert backbone.state_grammar.allowed == tuple(range(261, 277))
    used = {i for row in ids for i in row}
    assert used <= set(backbone.state_grammar.allowed)
    assert len(used) > 3
    assert backbone.state_grammar.max_length == 16
    assert backbone.state_grammar.eos is None
    assert ids[3] == liquid(folder).encode_states(noise_images(4)[3:], CPU)[0]  # the batch changes nothing


def test_codes_are_those_of_the_vqgan(folder: Path) -> None:
    backbone = liquid(folder)
    codec = VQGAN.from_folder(folder / "vqgan")
    pixels = torch.from_numpy(np.array(noise_images(1)[0])).permute(2, 0, 1)[None] / 127.5 - 1
    expected = (codec.encode(pixels)[0] + 261).tolist()
    ids = backbone.encode_states(noise_images(1), CPU)
    assert ids == [expected]
    decoded = backbone.decode_states(ids, CPU)[0]
    assert isinstance(decoded, Image.Image)
    assert decoded.size == (SIDE, SIDE)


def test_prompts_have_marks_around_images_and_bos_in_front(folder: Path) -> None:
    backbone = liquid(folder)
    builder = PromptBuilder(backbone, PromptTemplates(fwm="{before}!{action}?", idm="{before}{after}:"))
    x, y = backbone.encode_states(noise_images(2), CPU)
    z, boi, eoi = backbone.encode_action("go"), 3, 4
    assert builder.fwm(x, z) == [2, boi, *x, eoi, *backbone.encode_text("!"), *z, *backbone.encode_text("?"), boi]
    assert builder.idm(x, y) == [2, boi, *x, eoi, boi, *y, eoi, *backbone.encode_text(":")]


def test_actions_are_text_that_ends_with_eos(folder: Path) -> None:
    backbone = liquid(folder, max_action_tokens=8)
    grammar = backbone.action_grammar
    assert grammar.eos == 1
    assert not {0, 2, 3, 4} & set(grammar.allowed)
    assert max(grammar.allowed) < backbone.image_start
    text = "héllo\n wörld"
    assert backbone.decode_action(backbone.encode_text(text)) == text
    with pytest.warns(UserWarning, match="action of 13 tokens exceeds the 7 that max_action_tokens leaves: it is cut"):
        assert grammar.complete(backbone.encode_action("turn left now")) == [*backbone.encode_text("turn le"), 1]
    assert backbone.decode_text([2, *backbone.encode_text("go"), 270, 1]) == "go"


@pytest.mark.parametrize("quantization", ["nf4", None])
def test_the_base_loads_frozen(folder: Path, quantization: str | None) -> None:
    backbone = liquid(folder, quantization=quantization)
    model = backbone.load_model()
    assert not any(p.requires_grad for p in model.parameters())
    four_bit = [m for m in model.modules() if type(m).__name__ == "Linear4bit"]
    assert len(four_bit) == (14 if quantization else 0)
    assert not any(getattr(m, "support_avx512bf16_for_cpu", False) for m in four_bit)
    assert backbone.head(model).weight.shape == (277, 32)
    hidden = backbone.trunk(model)(input_ids=torch.tensor([[2, 3, 265]])).last_hidden_state
    assert hidden.shape == (1, 3, 32)


def test_another_vqgan_folder(folder: Path, broken: Path, tmp_path: Path) -> None:
    shutil.move(broken / "vqgan", tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="set vqgan_path"):
        liquid(broken).load_model()
    moved = liquid(broken, vqgan_path=str(tmp_path / "elsewhere"))
    assert moved.encode_states(noise_images(1), CPU) == liquid(folder).encode_states(noise_images(1), CPU)
    assert moved.fingerprint() == liquid(folder).fingerprint()


def test_fingerprint_follows_the_vqgan(folder: Path, broken: Path) -> None:
    other = VQGAN(VQGANConfig.from_yaml(broken / "vqgan" / "vqgan.yaml"))
    save_file(other.state_dict(), broken / "vqgan" / "vqgan.safetensors")
    assert liquid(broken).fingerprint() != liquid(folder).fingerprint()


def test_a_vqgan_of_another_size_is_named(broken: Path) -> None:
    vqgan(broken / "vqgan", codes=32)
    with pytest.raises(ValueError, match=r"277 ids leaves 245 for text.*32 codes.*use the VQGAN"):
        liquid(broken).load_model()
    with pytest.raises(ValueError, match="use the VQGAN"):
        liquid(broken).encode_states(noise_images(1), CPU)


def test_a_tokenizer_without_marks_is_named(broken: Path) -> None:
    byte_tokenizer().save_pretrained(broken)
    with pytest.raises(ValueError, match=r"tokenizer lacks <boi>, <eoi>; use the tokenizer files"):
        liquid(broken).load_model()


def test_another_family_is_named(broken: Path) -> None:
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps(config | {"model_type": "llama"}))
    with pytest.raises(ValueError, match=r"'llama' model, needed: \['gemma'\]"):
        liquid(broken).load_model()


def test_a_damaged_vqgan_is_named(broken: Path) -> None:
    (broken / "vqgan" / "vqgan.safetensors").write_bytes(b"1234")
    with pytest.raises(VQGANError, match="download it again"):
        liquid(broken).encode_states(noise_images(1), CPU)


def test_text_is_no_state_and_options_are_checked(folder: Path) -> None:
    with pytest.raises(ValueError, match="reads images"):
        liquid(folder).encode_states(["a room"], CPU)
    with pytest.raises(ValueError, match="max_action_tokens"):
        liquid(folder, max_action_tokens=1)
