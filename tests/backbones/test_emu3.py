"""Emu3: ids and images are those of the family, and parts that do not fit are named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import Emu3ForConditionalGeneration

from support.tiny import byte_tokenizer
from support.tiny_families import CODES, CPU, SIDE, backbone_of, noise_images


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_ids_are_those_of_the_family(folders):
    """Codes and end-of-row tokens as transformers lays them out; the opening names the size in codes."""
    backbone = backbone_of("emu3", folders["emu3"])
    model = Emu3ForConditionalGeneration.from_pretrained(folders["emu3"]).eval()
    images = noise_images(3)
    batch = backbone._processor.preprocess(images, do_resize=False, return_tensors="pt")
    theirs = model.model.get_image_tokens(batch["pixel_values"], batch["image_sizes"]).view(3, -1).tolist()
    side = SIDE // 2
    mark = backbone.tokenizer.convert_tokens_to_ids
    opening = [mark("<|image start|>"), *backbone.encode_text(f"{side}*{side}"), mark("<|image token|>")]
    closing = [mark("<|extra_201|>"), mark("<|image end|>")]
    contents = backbone.encode_states(images, CPU)
    for content, layout in zip(contents, theirs, strict=True):
        assert backbone.wrap_state(content) == [*opening, *layout, *closing]
    assert backbone.state_opening() == opening
    assert backbone.state_grammar.complete(contents[0]) == [*theirs[0], *closing]


def test_images_are_those_of_the_family(folders):
    backbone = backbone_of("emu3", folders["emu3"])
    model = Emu3ForConditionalGeneration.from_pretrained(folders["emu3"]).eval()
    content = backbone.encode_states(noise_images(1), CPU)[0]
    tokens = torch.tensor([[*backbone.state_grammar.complete(content), 1]])  # with an EOS, as generate leaves it
    pixels = model.model.decode_image_tokens(tokens, height=SIDE // 2, width=SIDE // 2)
    expected = ((pixels[0] / 2 + 0.5).clamp(0, 1) * 255).round().byte().permute(1, 2, 0)
    got = backbone.decode_states([content], CPU)[0]
    difference = torch.tensor(list(got.tobytes())).float() - expected.flatten().float()
    assert difference.abs().max() <= 1


def test_another_size_is_another_grammar(folders):
    backbone = backbone_of("emu3", folders["emu3"], resolution=4)
    ids = backbone.encode_states([Image.new("L", (30, 7))], CPU)[0]
    assert len(ids) == 4
    assert backbone.fingerprint() != backbone_of("emu3", folders["emu3"]).fingerprint()
    with pytest.raises(ValueError, match="multiple of 2"):
        _ = backbone_of("emu3", folders["emu3"], resolution=5).grid


def test_parts_that_do_not_fit_are_named(broken):
    folder = broken("emu3")
    state = load_file(folder / "model.safetensors")
    save_file({k: v for k, v in state.items() if "vqmodel.decoder" not in k}, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"lacks \d+ weights of its image tokenizer.*-hf"):
        backbone_of("emu3", folder).encode_states(noise_images(1), CPU)
    config = json.loads((folder / "config.json").read_text())
    edit(folder / "config.json", vq_config=config["vq_config"] | {"codebook_size": CODES + 1})
    with pytest.raises(ValueError, match=f"names {CODES} image codes.*has {CODES + 1}"):
        backbone_of("emu3", folder).load_model()
    edit(folder / "config.json", vq_config=config["vq_config"] | {"channel_multiplier": []})
    with pytest.raises(ValueError, match=r"channel_multiplier .* is empty"):
        _ = backbone_of("emu3", folder).grid
    code = next(token for token in config["vocabulary_map"] if "visual token" in token)
    edit(
        folder / "config.json", vq_config=config["vq_config"], vocabulary_map=config["vocabulary_map"] | {code: 10**12}
    )
    with pytest.raises(ValueError, match=r"its vocabulary has the id 1000000000000, and its config.json says"):
        backbone_of("emu3", folder).load_model()
    edit(folder / "config.json", vocabulary_map=None)
    with pytest.raises(ValueError, match="no vocabulary_map"):
        backbone_of("emu3", folder).load_model()
    byte_tokenizer().save_pretrained(folder)
    with pytest.raises(ValueError, match=r"tokenizer lacks <\|image start\|>"):
        _ = backbone_of("emu3", folder).tokenizer


def test_vq_of_another_shape_is_named(broken):
    folder = broken("emu3")
    state = load_file(folder / "model.safetensors")
    key = next(k for k in state if k.endswith("quantize.embedding.weight"))
    save_file(state | {key: state[key][:, :2].contiguous()}, folder / "model.safetensors")
    with pytest.raises(ValueError, match="VQ weights do not fit vq_config"):
        backbone_of("emu3", folder).encode_states(noise_images(1), CPU)
