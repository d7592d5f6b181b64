"""The README's Python, run unchanged."""

from __future__ import annotations

import re
from pathlib import Path

from PIL import Image

from swirl_lightning.__main__ import main

ROOT = Path(__file__).parents[1]


def blocks():
    section = (ROOT / "README.md").read_text().split("## In Python")[1].split("\n## ")[0]
    return re.findall(r"```python\n(.*?)```", section, flags=re.S)


def test_a_trained_model_predicts_in_ten_lines(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shorter = ["--data.warmup_size", "8", "--data.state_only_size", "16", "--data.validation_size", "4"]
    steps = ["--phase_switch.warmup_epochs", "1", "--phase_switch.iterations", "0"]
    quick = ["--trainer.enable_progress_bar", "false", "--trainer.limit_val_batches", "0"]
    main(["fit", "-c", str(ROOT / "configs" / "minigrid_quickstart.yaml"), *shorter, *steps, *quick])
    use = blocks()[0]
    assert len(use.strip().splitlines()) <= 10
    capsys.readouterr()
    exec(compile(use, "README.md", "exec"), {})
    assert Image.open("predicted.png").size == (48, 48)
    assert capsys.readouterr().out.count("'") >= 8  # four actions


def test_training_in_python_builds(monkeypatch):
    """The second block but for the training itself, which takes minutes."""
    (build,) = (block.replace(".fit(model, MiniGrid())", "") for block in blocks()[1:])
    assert build != blocks()[1]
    names: dict[str, object] = {}
    exec(compile(build, "README.md", "exec"), names)
    assert names["model"].schedule.epochs is None
