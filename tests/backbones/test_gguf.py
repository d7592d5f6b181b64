"""TextLLM from a GGUF file: the model, the tokenizer and the chat template that the file holds."""

from __future__ import annotations

import os
import shutil
import struct

import pytest
import torch
from gguf import GGUFReader

from support.tiny_gguf import FILE, TEMPLATE, write_gguf
from swirl_lightning.backbones import TextLLM, gguf
from swirl_lightning.backbones.identity import base_identity, differing

IDS = torch.arange(40).view(2, 20)


def backbone(folder, **options) -> TextLLM:
    return TextLLM(str(folder), **({"gguf_file": FILE, "quantization": None, "dtype": "float32"} | options))


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gguf")
    return folder, write_gguf(folder / FILE)


@torch.no_grad()
def logits(model):
    return model(IDS).logits


def test_the_model_is_the_one_in_the_file(written):
    folder, model = written
    loaded = backbone(folder).load_model()
    assert torch.equal(logits(loaded), logits(model))
    assert not any(p.requires_grad for p in loaded.parameters())
    halved = backbone(folder, dtype="bfloat16").load_model()
    assert {p.dtype for p in halved.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("quantization", ["nf4", None])
def test_it_equals_its_own_folder_of_safetensors(written, tmp_path, quantization):
    folder, _ = written
    plain = backbone(folder)
    plain.load_model().save_pretrained(tmp_path)
    plain.tokenizer.save_pretrained(tmp_path)
    file = backbone(folder, quantization=quantization)
    ours = file.load_model()
    theirs = backbone(tmp_path, quantization=quantization, gguf_file=None)
    model = theirs.load_model()
    layers = [type(m).__name__ == "Linear4bit" for m in ours.modules() if isinstance(m, torch.nn.Linear)]
    assert sum(layers) == (14 if quantization else 0)
    assert torch.equal(logits(ours), logits(model))
    identities = base_identity(ours, file), base_identity(model, theirs)
    assert not differing(*identities)  # adapters of the one fit the other
    assert [identity["files"].partition(":")[0] for identity in identities] == ["gguf", "tensors"]
    text = "a room\n\n1 room  23 <|im_end|>"
    assert plain.encode_text(text) == theirs.encode_text(text)
    assert plain.frame_prompt("{before}") == theirs.frame_prompt("{before}")


def test_the_tokenizer_is_the_one_in_the_file(written):
    text = backbone(written[0])
    tokenizer = text.tokenizer
    assert tokenizer.chat_template == TEMPLATE
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (1, 2)
    (ids,) = text.encode_states(["a room <|im_end|>"], torch.device("cpu"))
    assert 2 not in ids  # data ends no turn
    assert text.decode_text(ids) == "a room <|im_end|>"
    assert text.encode_text("<|im_end|>") == [2]


def test_a_digit_stands_alone_as_in_training(written):
    """SmolLM2's own pre-tokenizer takes numbers out first, so that two line breaks before one are one token."""
    text = backbone(written[0])
    tokens = text.tokenizer.convert_ids_to_tokens
    assert tokens(text.encode_text("a\n\n12")) == ["a", "ĊĊ", "1", "2"]
    assert tokens(text.encode_text("a\n\na")) == ["a", "Ċ", "Ċ", "a"]


def test_the_file_is_part_of_the_fingerprint(written):
    folder, _ = written
    shutil.copy(folder / FILE, folder / "other.gguf")
    assert backbone(folder).fingerprint() != backbone(folder, gguf_file="other.gguf").fingerprint()


ARRAY = b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"a" + struct.pack("<I", 9)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 2**40), "it ends within its header"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 2**63), "more than the file has bytes"),
        (ARRAY + struct.pack("<IQ", 4, 2**40) + bytes(100), "a length of 4,398,046,511,104"),
        (ARRAY + struct.pack("<IQ", 8, 2**40) + bytes(1000), "it ends within its header"),
        (ARRAY + struct.pack("<IQ", 9, 1) * 5000, "type 9, 4 deep"),
        (ARRAY + struct.pack("<IQ", 9, 2**40) + struct.pack("<IQ", 4, 0) * 1000, "it ends within its header"),
        (ARRAY[:-4] + struct.pack("<I", 99), "type 99"),
    ],
)
def test_lengths_that_the_file_does_not_have_are_told_at_once(tmp_path, content, told):
    (tmp_path / FILE).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{FILE} cannot be read as a GGUF file \(.*{told}"):
        backbone(tmp_path).load_model()


def test_tensors_that_share_their_bytes_are_refused(written, tmp_path):
    """A file of some bytes could stand for a memory full of weights."""
    path = tmp_path / FILE
    shutil.copy(written[0] / FILE, path)
    file = GGUFReader(path, "r+")
    for tensor in file.tensors:
        tensor.field.parts[-1][0] = 0  # all at the same place
    file.data.flush()
    os.truncate(path, file.data_offset + max(int(tensor.n_bytes) for tensor in file.tensors))
    with pytest.raises(ValueError, match=r"cannot be read as a GGUF file \(.*its tensors overlap"):
        backbone(tmp_path).load_model()


def test_what_cannot_be_read_is_named(written, tmp_path, monkeypatch):
    folder, _ = written
    for name in ("../tiny.gguf", "tiny.bin", "/tiny.gguf", ".gguf/"):
        with pytest.raises(ValueError, match=r"gguf_file must be the name of a \.gguf file"):
            backbone(folder, gguf_file=name)
    with pytest.raises(FileNotFoundError, match=r"no file 'none.gguf'; GGUF files in it: .*'tiny.gguf'"):
        backbone(folder, gguf_file="none.gguf").load_model()
    whole = (folder / FILE).read_bytes()
    for place, data in enumerate((b"", b"PK" + whole[2:], whole[:200], whole[:-500])):
        path = tmp_path / f"{place}.gguf"
        path.write_bytes(data)
        with pytest.raises(ValueError, match=rf"{place}.gguf cannot be read as a GGUF file.*is it complete"):
            backbone(tmp_path, gguf_file=path.name).load_model()
    monkeypatch.setattr(gguf, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"gguf and accelerate: pip install 'swirl-lightning\[gguf\]'"):
        _ = backbone(folder).tokenizer
