"""What SECURITY.md says and no other test checks."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file
from transformers.integrations import hub_kernels

from support.cli import config, here
from support.image_world import clip_folder
from support.text_suites import bert_folder
from support.tiny import byte_tokenizer, gemma_folder, text_backbone
from swirl_lightning import SWIRL
from swirl_lightning.benchmarks.mind2web import Mind2Web
from swirl_lightning.callbacks.predictions import file_name
from swirl_lightning.data import JSONLTransitions
from swirl_lightning.exports.card import base_licence
from swirl_lightning.judge import Judge
from swirl_lightning.metrics import bert_score, clip, embedding, perplexity

ROOT = Path(__file__).parents[1]


def test_every_line_of_the_threat_model_has_a_test():
    text = (ROOT / "SECURITY.md").read_text()
    table = [line for line in text.splitlines() if line.startswith("|")][2:]
    assert len(table) > 20
    assert [line for line in table if "::test_" not in line] == []
    for line in table:
        file = ""
        for path, name in re.findall(r"`([\w/]*(?:\.py)?)::(test_\w+)`", line.rpartition(" | ")[2]):
            file = path or file  # the next one of the same file is named without it
            assert f"def {name}(" in (ROOT / "tests" / file).read_text(), f"{file}::{name}"


def test_exported_adapters_are_tensors_and_settings(gemma_path, tmp_path):
    here("fit", "-c", config(tmp_path, gemma_path), "--trainer.max_steps", "1")
    folder = tmp_path / "runs" / "r" / "adapters"
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} <= {".safetensors", ".json", ".md"}
    weights = [path for path in files if path.suffix == ".safetensors"]
    assert len(weights) >= 2
    assert all(load_file(path) for path in weights)


BOMB = "".join(f"{chr(97 + i)}: &{chr(97 + i)} [*{chr(96 + i)}, *{chr(96 + i)}]\n" for i in range(1, 25))
CARDS = {
    "good": ("---\nlicense: apache-2.0\n---\nwords\n---\n", "apache-2.0"),
    "bomb": (f"---\na: &a [x]\n{BOMB}license: *y\n---\n", ""),
    "deep": ("---\nlicense: " + "[" * 3000 + "\n---\n", ""),
    "list": ("---\nlicense: [mit]\n---\n", ""),
    "no text": ('---\nlicense: "\\uD800"\n---\n', ""),
    "no mapping": ("---\n- license\n---\n", ""),
    "none": ("words alone", ""),
}


@pytest.mark.parametrize(("card", "licence"), CARDS.values(), ids=CARDS)
def test_a_card_of_a_base_gives_a_licence_or_nothing(tmp_path, card, licence):
    (tmp_path / "README.md").write_text(card)
    assert base_licence(text_backbone(tmp_path)) == licence
    (tmp_path / "source.json").write_text("[" * 100_000)
    assert base_licence(text_backbone(tmp_path)) == ""
    (tmp_path / "source.json").write_text('{"license": "mit"}')
    assert base_licence(text_backbone(tmp_path)) == "mit"


def test_a_pipe_is_no_card(tmp_path):
    os.mkfifo(tmp_path / "README.md")
    assert base_licence(text_backbone(tmp_path)) == ""


CODE = """
from pathlib import Path

from transformers import {kind}Config, {kind}Model, PreTrainedTokenizerFast

Path({marker!r}).write_text("foreign code has run")


class Config({kind}Config):
    pass


class Model({kind}Model):
    config_class = Config


class Tokenizer(PreTrainedTokenizerFast):
    pass
"""


def planted(folder: Path, marker: Path, kind: str) -> str:
    """A folder whose model and tokenizer are of classes of its own."""
    (folder / "foreign.py").write_text(CODE.format(kind=kind, marker=str(marker)))
    settings = json.loads((folder / "config.json").read_text())
    settings |= {"model_type": "foreign", "auto_map": {"AutoConfig": "foreign.Config", "AutoModel": "foreign.Model"}}
    (folder / "config.json").write_text(json.dumps(settings))
    path = folder / "tokenizer_config.json"
    tokenizer = json.loads(path.read_text()) if path.is_file() else {}
    tokenizer |= {"tokenizer_class": "Tokenizer", "auto_map": {"AutoTokenizer": [None, "foreign.Tokenizer"]}}
    path.write_text(json.dumps(tokenizer))
    return str(folder)


LOADS = {
    "bert": lambda folder: bert_score._load(folder, "cpu"),
    "embedding": lambda folder: embedding._load(folder, "cpu"),
    "tokenizer": lambda folder: Mind2Web(".", tokenizer=folder)._size(),
    "clip": lambda folder: clip._load(folder, "cpu"),
    "checks": lambda folder: bert_score.missing_model(folder),
}


@pytest.mark.parametrize("name", LOADS)
def test_no_code_of_a_metrics_model_runs(tmp_path, monkeypatch, name):
    """Transformers asks on the terminal where it is not told, and a script may say yes to everything."""
    marker = tmp_path / "marker"
    folder = (clip_folder if name == "clip" else bert_folder)(tmp_path / "model")
    if name == "clip":
        byte_tokenizer().save_pretrained(folder)
    folder = planted(folder, marker, "CLIP" if name == "clip" else "Bert")
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 20))
    try:
        found = LOADS[name](folder)
    except (OSError, ValueError) as error:
        found = str(error)
    assert not marker.exists()
    assert name == "clip" or "custom code" in found or "trust_remote_code" in found


KERNEL = "kernels-community/flash@0123456"
"""A repository of code on the hub, at a commit of anybody's."""


@pytest.fixture
def kernels(monkeypatch):
    """What transformers would load from the hub where the package ``kernels`` is installed."""
    found = []
    monkeypatch.setattr(hub_kernels, "is_kernels_available", lambda *_, **__: True)
    monkeypatch.setattr(hub_kernels, "get_kernel", lambda name, **_: found.append(name))
    return found


def asking(folder, key="_attn_implementation"):
    path = Path(folder, "config.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: KERNEL}))
    return str(folder)


@pytest.mark.parametrize("name", [*(name for name in LOADS if name != "tokenizer"), "perplexity", "base"])
@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation"])
def test_no_kernel_that_a_model_names_is_loaded(tmp_path, kernels, name, key):
    """An attention in config.json may be code of the hub, and no option of transformers keeps it away."""
    loads = LOADS | {
        "perplexity": lambda folder: perplexity._load(folder, "cpu"),
        "base": lambda folder: text_backbone(folder).load_model(),
    }
    make = gemma_folder if name in ("perplexity", "base") else clip_folder if name == "clip" else bert_folder
    folder = make(tmp_path / "model")
    try:
        found = loads[name](asking(folder, key))
    except (OSError, ValueError) as error:
        found = str(error)
    assert "asks for code of the hub" in found
    assert not kernels


@pytest.mark.parametrize("name", ["bert", "clip", "perplexity", "base"])
def test_no_adapter_beside_a_model_leads_to_another(tmp_path, kernels, name):
    """Transformers would load the model that it names, whose config.json nobody has looked at."""
    loads = LOADS | {
        "perplexity": lambda folder: perplexity._load(folder, "cpu"),
        "base": lambda folder: text_backbone(folder).load_model(),
    }
    make = gemma_folder if name in ("perplexity", "base") else clip_folder if name == "clip" else bert_folder
    folder, other = make(tmp_path / "model"), asking(make(tmp_path / "other"))
    if name == "clip":
        byte_tokenizer().save_pretrained(folder)
    Path(folder, "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": other}))
    try:
        found = loads[name](str(folder))
    except (OSError, ValueError) as error:
        found = str(error)
    assert "holds an adapter (adapter_config.json)" in found
    assert not kernels


def test_an_export_names_no_kernel_and_no_folder(minigrid, tmp_path, kernels):
    folder = shutil.copytree(minigrid / "adapters" / "last", tmp_path / "export")
    settings = json.loads((folder / "swirl.json").read_text())
    assert "attn_implementation" not in settings["backbone"]["options"]
    settings["backbone"]["options"]["attn_implementation"] = KERNEL
    (folder / "swirl.json").write_text(json.dumps(settings))
    assert SWIRL.from_pretrained(folder).backbone.attn_implementation == "sdpa"
    assert not kernels
    base = gemma_folder(tmp_path / "base")
    for path in (str(base), "../" * 20 + str(base)):
        settings["base"]["name"] = f"builtin/{path}"
        (folder / "swirl.json").write_text(json.dumps(settings))
        with pytest.raises(FileNotFoundError, match="is shipped with the package"):
            SWIRL.from_pretrained(folder)


def test_no_expression_of_an_export_is_matched(minigrid, tmp_path):
    """This one takes for ever: the modules are those whose adapters are in the folder."""
    folder = shutil.copytree(minigrid / "adapters" / "last", tmp_path / "export")
    settings = json.loads((folder / "swirl.json").read_text())
    own = SWIRL.from_pretrained(folder).adapters.state_dict()
    for given in (r"(\w+\.?)+!", "["):
        settings["lora"]["target_modules"] = given
        (folder / "swirl.json").write_text(json.dumps(settings))
        loaded = SWIRL.from_pretrained(folder).adapters.state_dict()
        assert own.keys() == loaded.keys()
        assert all(own[key].equal(loaded[key]) for key in own)


def test_no_pipe_in_an_export_is_waited_for(minigrid, tmp_path):
    """Archives may hold one in place of a file."""
    folder = shutil.copytree(minigrid / "adapters" / "last", tmp_path / "export")
    (folder / "other").mkdir()
    os.mkfifo(folder / "other" / "adapter_model.safetensors")
    SWIRL.from_pretrained(folder)
    (folder / "fwm" / "adapter_model.safetensors").unlink()
    os.mkfifo(folder / "fwm" / "adapter_model.safetensors")
    with pytest.raises(FileNotFoundError, match="not a whole export"):
        SWIRL.from_pretrained(folder)


IDS = [
    "../../x",
    "/etc/passwd",
    "a/b",
    "a\\b",
    "a\0b",
    "..",
    ".",
    "",
    "~",
    "x" * 5000,
    "字" * 5000,
    "🦉" * 200,
    "a\nb",
    " ",
]


def test_an_id_is_a_file_name_in_its_folder_and_no_others(tmp_path):
    names = [file_name(record) for record in IDS]
    for name in names:
        assert re.fullmatch(r"[\w.-]*", name)
        path = tmp_path / f"{name}.png"
        path.write_text("x")
        assert path.parent.resolve() == path.resolve().parent == tmp_path.resolve()
    assert len(list(tmp_path.iterdir())) == len(IDS)


def test_a_users_own_records_reach_no_judge():
    """They may name images anywhere on the machine."""
    with pytest.raises(TypeError, match="judge"):
        JSONLTransitions(warmup="x.jsonl", judge=Judge("m"))
