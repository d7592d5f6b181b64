"""Chameleon: ids are those of the family, and parts that do not fit are named."""

from __future__ import annotations

import shutil

import pytest
import torch
from safetensors.torch import save_file
from transformers import ChameleonForConditionalGeneration

from support.tiny_families import CODES, CPU, SIDE, backbone_of, noise_images, vqgan
from swirl_lightning.backbones.pixels import to_pixels


def test_ids_are_those_of_the_family(folders):
    backbone = backbone_of("chameleon", folders["chameleon"])
    model = ChameleonForConditionalGeneration.from_pretrained(folders["chameleon"]).eval()
    images = noise_images(3)
    assert backbone.encode_states(images, CPU) == model.get_image_tokens(to_pixels(images, SIDE)).tolist()


def test_trunk_and_head_see_past_the_mask_of_its_forward(folders):
    backbone = backbone_of("chameleon", folders["chameleon"], quantization=None)
    model = backbone.load_model()
    ids = torch.tensor([[2, *backbone.wrap_state(backbone.encode_states(noise_images(1), CPU)[0])]])
    image = list(backbone.state_grammar.allowed)
    assert (model(input_ids=ids).logits[..., image] < -1e30).all()
    hidden = backbone.trunk(model)(input_ids=ids).last_hidden_state
    assert (backbone.head(model)(hidden)[..., image].abs() < 1e3).all()


def test_parts_that_do_not_fit_are_named(broken):
    folder = broken("chameleon")
    whole = vqgan(folder / "vqgan")
    shuffled = whole.state_dict() | {"quantize.embedding.weight": whole.quantize.embedding.weight.flip(0)}
    save_file({k: v.contiguous() for k, v in shuffled.items()}, folder / "vqgan" / "vqgan.safetensors")
    with pytest.raises(ValueError, match=r"codebook of .* is another one"):
        backbone_of("chameleon", folder).load_model()
    vqgan(folder / "vqgan", codes=CODES + 4)
    with pytest.raises(ValueError, match=f"VQ has {CODES} codes of 8 numbers.*{CODES + 4} of 8"):
        backbone_of("chameleon", folder).load_model()
    shutil.rmtree(folder / "vqgan")
    with pytest.raises(ValueError, match="set vqgan_path"):
        backbone_of("chameleon", folder).load_model()
