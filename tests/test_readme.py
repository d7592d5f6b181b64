"""The README's Python and the commands on a trained run, unchanged."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from PIL import Image

from support.trained import minigrid_run
from swirl_lightning.__main__ import main

ROOT = Path(__file__).parents[1]


def blocks():
    section = (ROOT / "README.md").read_text().split("## In Python")[1].split("\n## ")[0]
    return re.findall(r"```python\n(.*?)```", section, flags=re.S)


def test_a_trained_model_predicts_in_ten_lines(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    minigrid_run(tmp_path / "runs" / "quickstart")
    use = blocks()[0]
    assert len(use.strip().splitlines()) <= 10
    capsys.readouterr()
    exec(compile(use, "README.md", "exec"), {})
    assert Image.open("predicted.png").size == (48, 48)
    assert capsys.readouterr().out.count("'") >= 8  # four actions
    commands = re.findall(r"^swirl ((?:label|simulate|export|push) .*)$", (ROOT / "README.md").read_text(), flags=re.M)
    assert len(commands) == 4
    for command in commands:
        main(shlex.split(command))
    told = capsys.readouterr().out
    assert "of 8 labels kept" in told
    assert "MiniGrid" in told
    assert "would be uploaded to my-name/quickstart: 6 files" in told
    assert Path("runs/labels/labelled.jsonl").is_file()
    assert Path("runs/rollout/rollout.gif").is_file()


def test_training_in_python_builds(monkeypatch):
    """The second block but for the training itself, which takes minutes."""
    (build,) = (block.replace(".fit(model, MiniGrid())", "") for block in blocks()[1:])
    assert build != blocks()[1]
    names: dict[str, object] = {}
    exec(compile(build, "README.md", "exec"), names)
    assert names["model"].schedule.epochs is None
