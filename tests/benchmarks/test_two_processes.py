"""A visual suite on two processes: the same scores as on one, nothing twice, nothing lost."""

from __future__ import annotations

import json

import pytest
import torch
from visual_world import clip_folder, liquid_folder, model, trainer, write_aurora

from swirl_lightning.benchmarks.aurora import Aurora
from swirl_lightning.callbacks.predictions import Predictions
from swirl_lightning.callbacks.results import Results, read
from swirl_lightning.evaluation import EvaluationConfig


def run(folder, root, devices=1):
    data = Aurora(data_dir=str(root / "data"), clip=str(root / "clip"), eval_batch_size=2)
    module = model(root / "base", evaluation=EvaluationConfig(modes=("sampled",)), optimizer=torch.optim.AdamW)
    spread = {"strategy": "ddp_spawn", "devices": 2} if devices == 2 else {}
    trainer(folder, Predictions(), Results(row="r"), **spread).test(module, data, verbose=False)
    return read(folder / "results.json")["test"]["r"]


def lines(folder, rank):
    path = folder / "predictions" / f"sampled-rank{rank}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.skipif(not torch.distributed.is_available(), reason="no torch.distributed")
def test_two_processes_give_the_scores_of_one(tmp_path):
    write_aurora(tmp_path / "data", per_task=3)  # 9 records: the ranks have 5 and 4
    clip_folder(tmp_path / "clip")
    liquid_folder(tmp_path / "base")
    one = run(tmp_path / "one", tmp_path)
    two = run(tmp_path / "two", tmp_path, devices=2)
    assert one.keys() == two.keys()
    assert two == pytest.approx(one, abs=1e-5)
    alone = {line["id"]: line for line in lines(tmp_path / "one", 0)}
    shared = [*lines(tmp_path / "two", 0), *lines(tmp_path / "two", 1)]
    assert len(shared) == len(alone) == 9
    assert {line["id"]: line["predicted_action"] for line in shared} == {
        name: line["predicted_action"] for name, line in alone.items()
    }
    assert (tmp_path / "two" / "predictions" / "contact_sheet.png").is_file()
