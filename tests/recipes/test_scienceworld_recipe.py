"""The small base of ScienceWorld, and the bookkeeping of its trial."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import pytest
from recipes.scienceworld_base import BaseConfig, _of_like_length, build
from recipes.scienceworld_trial import markdown, run

from recipes import scienceworld_trial
from swirl_lightning.backbones import TextLLM
from swirl_lightning.benchmarks.scienceworld import FILE, ScienceWorld

TINY = BaseConfig(vocabulary=320, hidden=32, layers=1, heads=2, longest=64, batch=2, steps=2)


@pytest.fixture
def data(tmp_path) -> ScienceWorld:
    rows = [
        {
            "task": "boil",
            "variation": variation,
            "split": "train",
            "step": 0,
            **dict.fromkeys(("prev_obs", "look_before", "inv_before"), f"A room, {variation}.\n"),
            **dict.fromkeys(("obs", "look_after", "inv_after"), f"A hall, {variation}.\n"),
            "action": f"secret{variation}",
        }
        for variation in range(4)
    ]
    (tmp_path / FILE).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return ScienceWorld(str(tmp_path))


def test_a_base_that_the_backbone_loads(data, tmp_path):
    build(data, tmp_path / "base", TINY, 0, lambda text: None)
    backbone = TextLLM(str(tmp_path / "base"), quantization=None, dtype="float32")
    state = str(data.split("warmup")[0].before)
    assert backbone.decode_text(backbone.encode_text(state)) == state
    assert sum(p.numel() for p in backbone.load_model().parameters()) < 100_000


def test_batches_are_of_like_length():
    rows = [[7] * length for length in (9, 1, 8, 2, 9, 1)]
    batches = _of_like_length(rows, 2, Random(0))
    seen = [next(batches) for _ in range(50)]
    assert {tuple(map(len, batch)) for batch in seen} == {(1, 1), (1, 2), (2, 8), (8, 9), (9, 9)}
    assert len(next(_of_like_length(rows[:1], 2, Random(0)))) == 1


def test_the_base_depends_on_its_seed_alone(data, tmp_path):
    folders = [tmp_path / name for name in "ab"]
    for folder in folders:
        build(data, folder, TINY, 0, lambda text: None)
    one, other = ((folder / "model.safetensors").read_bytes() for folder in folders)
    assert one == other


def test_a_trial_does_nothing_twice(tmp_path, monkeypatch):
    config = tmp_path / "c.yaml"
    calls: list[tuple[str, list[str]]] = []

    def swirl(command: str, config: Path, arguments: list[str]) -> None:
        calls.append((command, list(arguments)))
        folder = tmp_path / "runs" / "seed3"
        (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        (folder / "config.yaml").write_text("phase_switch: {warmup_epochs: 5}\n")
        if command == "test":
            if len(calls) == 3:
                raise KeyboardInterrupt
            path = folder / "results.json"
            rows = json.loads(path.read_text())["test"] if path.is_file() else {}
            rows[f"row {len(rows)}"] = {"fwm/greedy/exact_match": 0.5}
            path.write_text(json.dumps({"test": rows}))

    monkeypatch.setattr(scienceworld_trial, "_swirl", swirl)
    with pytest.raises(KeyboardInterrupt):
        run(config, tmp_path / "runs", 3, ["--x", "1"])
    rows = run(config, tmp_path / "runs", 3, ["--x", "1"])
    assert list(rows) == ["row 0", "row 1"]
    assert [command for command, _ in calls] == ["fit", "test", "test", "test"]
    assert calls[1][1][-2:] == ["--ckpt_path", str(tmp_path / "runs" / "seed3" / "checkpoints" / "epoch=4.ckpt")]
    assert calls[3][1][-1].endswith("last.ckpt")
    assert calls[0][1][:2] == ["--seed_everything", "3"]
    assert calls[0][1][-2:] == ["--x", "1"]


def test_the_table_by_hand():
    tables = [{"SFT": {"fwm/greedy/exact_match": value}} for value in (0.1, 0.2, 0.3)]
    lines = markdown(tables).splitlines()
    assert len({line.count("|") for line in lines}) == 1
    row = lines[-1]
    assert row.startswith(f"| SFT | 0.200 ± {0.1 / 3**0.5:.3f} | – |")
    assert "±" not in markdown(tables[:1]).splitlines()[-1]
