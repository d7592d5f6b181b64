"""YAML of a few lines that stands for more than any memory holds."""

from __future__ import annotations

import pytest
import yaml

from support.cli import config, here
from swirl_lightning import SWIRL
from swirl_lightning.backbones.vqgan import VQGANConfig, VQGANError
from swirl_lightning.checkpoints.restore import from_config
from swirl_lightning.files.safe_yaml import KeyTwice, TooManyAliases, load


def bomb(value: str, levels: int = 15) -> str:
    """Ten times as much with every line."""
    lines = [f"a0: &a0 {value}"]
    for n in range(1, levels):
        ten = ", ".join([f"*a{n - 1}"] * 10)
        lines.append(f"a{n}: &a{n} " + (f"{{<<: [{ten}]}}" if value.startswith("{") else f"[{ten}]"))
    return "\n".join(lines) + "\n"


BOMBS = {
    "lists": bomb("[x]"),
    "merged mappings": bomb("{x: 1}"),
    "itself": "a: &a [*a]\n",
    "its key": "a: &a {b: *a}\n",
}


@pytest.fixture(params=BOMBS.values(), ids=BOMBS)
def many(request) -> str:
    return request.param


def test_aliases_within_reason_are_read():
    assert load("a: &a {x: 1}\nb: *a\nc: {<<: *a, y: '*'}") == {"a": {"x": 1}, "b": {"x": 1}, "c": {"x": 1, "y": "*"}}
    assert load(bomb("[x]", 4))["a3"][9][9][9] == ["x"]
    assert load("") is None
    with pytest.raises(yaml.YAMLError, match="undefined alias"):
        load("a: *b")


def test_a_bomb_is_refused(many):
    with pytest.raises(TooManyAliases, match="stand for more than 100000 values"):
        load(many)


def test_so_is_what_is_nested_too_deeply():
    with pytest.raises(yaml.YAMLError, match="nested too deeply"):
        load("[" * 5000 + "]" * 5000)


@pytest.mark.parametrize(
    "text", ["a: 1\nb: {x: 1}\na: 2\n", "{b: {a: 1, a: 1}}", "- c: 0\n- a: 1\n  'a': 2\n", "x: &x {a: 1, a: 2}\ny: *x"]
)
def test_a_key_that_comes_twice_is_told(text):
    with pytest.raises(KeyTwice, match=r"the key .a. comes twice, in lines . and .: leave one out"):
        load(text)


def test_keys_of_several_mappings_come_once():
    text = "a: &a {x: 1}\nb: &b {x: 2, y: 3}\nc:\n  <<: *a\n  <<: *b\n  x: 4\nd: [{x: 1}, {x: 2}]\n1: 1\n'1': 2\n"
    assert load(text)["c"]["x"] == 4


def test_a_key_that_comes_twice_in_a_configuration_is_one_line(tmp_path, gemma_path, capsys):
    path = config(tmp_path, gemma_path)
    path.write_text(path.read_text() + "\nphase_switch: {warmup_epochs: 1}\nphase_switch: {warmup_epochs: 2}\n")
    with pytest.raises(SystemExit):
        here("fit", "-c", path)
    (line,) = capsys.readouterr().err.splitlines()
    assert "the key 'phase_switch' comes twice, in lines" in line


def test_of_a_base(tmp_path, many):
    """``vqgan.yaml`` comes from the hub."""
    path = tmp_path / "vqgan.yaml"
    path.write_text(many + "model: {params: {embed_dim: 4, ddconfig: {}}}")
    with pytest.raises(VQGANError, match=r"vqgan\.yaml .*TooManyAliases"):
        VQGANConfig.from_yaml(path)


def test_keys_of_one_hash_take_no_time(tmp_path):
    path = tmp_path / "vqgan.yaml"
    VQGANConfig().to_yaml(path)
    path.write_text(path.read_text() + "".join(f"{key * (2**61 - 1)}: 0\n" for key in range(1, 30_000)))
    with pytest.raises(VQGANError, match=r"bytes are more than 100,000"):
        VQGANConfig.from_yaml(path)


@pytest.mark.parametrize("value", ["many", "[1]", ".inf", "[" * 5000 + "]" * 5000, '"\\UFFFFFFFF"'])
def test_numbers_of_a_base_that_are_none(tmp_path, value):
    path = tmp_path / "vqgan.yaml"
    VQGANConfig().to_yaml(path)
    path.write_text(path.read_text().replace("embed_dim: 256", f"embed_dim: {value}"))
    with pytest.raises(VQGANError, match=r"vqgan\.yaml is not a taming VQGAN config"):
        VQGANConfig.from_yaml(path)


def test_of_a_run(tmp_path, many):
    path = tmp_path / "config.yaml"
    path.write_text(many + "model: {class_path: swirl_lightning.SWIRL}")
    with pytest.raises(ValueError, match=r"config\.yaml is no configuration: its aliases stand for more than"):
        from_config(SWIRL, path, {})


def test_of_a_command(tmp_path, gemma_path, capsys):
    path = config(tmp_path, gemma_path)
    path.write_text(BOMBS["lists"] + path.read_text())
    with pytest.raises(SystemExit):
        here("fit", "-c", path)
    assert "stand for more than 100000 values" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"a: " + b"[" * 5000 + b"]" * 5000, "nested too deeply"),
        (bytes(range(128, 256)), "the configuration is no UTF-8 text"),
        (b"- 1\n- 2\n", "Unexpected config"),
        (b'a: "\0"', "control characters are not allowed"),
        (b"trainer:\n\tmax_steps: 3\n", "cannot start any token"),
        (b"a: !!python/object/apply:os.getcwd []", "could not determine a constructor"),
        (b'a: "\\UFFFFFFFF"', "invalid Unicode character"),
        (b"a: 1" + b":0" * 200 + b".0", "a value is not of its tag"),
    ],
)
def test_what_is_no_configuration_is_one_line(tmp_path, capsys, content, told):
    path = tmp_path / "config.yaml"
    path.write_bytes(content)
    with pytest.raises(SystemExit) as end:
        here("fit", "-c", path)
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert told in line
