"""The rows of ``results.json``: which tests share one, and which are kept side by side."""

from __future__ import annotations

import json
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from io import StringIO
from pathlib import Path

import pytest
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from rich.console import Console

from support.processes import run_module
from support.tiny import text_backbone
from support.trainers import quiet_trainer
from support.world import Digits
from swirl_lightning import SWIRL, SamplingConfig
from swirl_lightning.callbacks import AdapterExport, PhaseSwitch, Results
from swirl_lightning.evaluation import EvaluationConfig
from swirl_lightning.results.table import COLUMNS, read, table


def module(gemma_path, evaluation=None, temperature=1.0, **kwargs):
    backbone = text_backbone(gemma_path, max_state_tokens=4, max_action_tokens=5, quantization=None)
    evaluation = evaluation or EvaluationConfig(modes=("sampled",))
    return SWIRL(backbone, sampling=SamplingConfig(temperature), evaluation=evaluation, **kwargs)


def warmed_up(gemma_path, folder, data=None, **kwargs):
    """A run's checkpoint after the warm-up."""
    saved = ModelCheckpoint(folder / "checkpoints", save_last=True, enable_version_counter=False)
    options = {"enable_checkpointing": True, "max_epochs": 1, "num_sanity_val_steps": 0}
    run = quiet_trainer(folder, PhaseSwitch(1, iterations=0), Results(), saved, **options)
    run.fit(module(gemma_path, **kwargs), data or Digits(size=8, batch_size=8))
    return folder / "checkpoints" / "last.ckpt"


class Seen(Callback):
    """The rows of the table after each validation."""

    def __init__(self):
        self.rows = []

    def on_validation_end(self, trainer, pl_module):
        self.rows.append(list(read(Path(trainer.default_root_dir) / "results.json").get("validation", {})))


def rows(folder, gemma_path, ckpt_path, row=None, data=None, command="test", **kwargs):
    """The table after one more test."""
    run = quiet_trainer(folder, PhaseSwitch(1, iterations=0), Results(row))
    getattr(run, command)(
        module(gemma_path, **kwargs), data or Digits(size=8), ckpt_path=ckpt_path, verbose=False, weights_only=True
    )
    return read(folder / "results.json")


@pytest.fixture(scope="module")
def runs(tmp_path_factory, gemma_path) -> dict[str, Path]:
    """Checkpoints of two runs, and of one with shared weights; all are called SFT."""
    folder = tmp_path_factory.mktemp("runs")
    found = {name: warmed_up(gemma_path, folder / name) for name in ("one", "two")}
    return found | {"shared": warmed_up(gemma_path, folder / "shared", shared_weights=True)}


def test_the_same_test_replaces_its_row(runs, gemma_path, tmp_path, monkeypatch):
    first = rows(tmp_path, gemma_path, runs["one"])
    results = json.loads((tmp_path / "results.json").read_text())
    results["test"]["SFT"] = {"old": 1.0}
    (tmp_path / "results.json").write_text(json.dumps(results))
    monkeypatch.chdir(runs["one"].parent)  # the same file by another name, and other batches
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*keeps its row.*")
        again = rows(tmp_path, gemma_path, "last.ckpt", data=Digits(size=8, eval_batch_size=3))
    assert list(again["test"]) == ["SFT"]
    assert again["test"]["SFT"] == pytest.approx(first["test"]["SFT"], abs=1e-4)


def test_shared_weights_and_best_of_are_in_the_name(runs, gemma_path, tmp_path):
    rows(tmp_path, gemma_path, runs["one"])
    rows(tmp_path, gemma_path, runs["shared"], shared_weights=True)
    best = EvaluationConfig(modes=("sampled",), best_of=2)
    rows(tmp_path, gemma_path, runs["shared"], shared_weights=True, evaluation=best)
    found = rows(tmp_path, gemma_path, runs["one"], evaluation=best)
    names = ["SFT", "SFT, shared weights", "SFT, shared weights, best of 2", "SFT, best of 2"]
    assert list(found["test"]) == list(found["about"]["test"]) == names
    assert list(read(runs["shared"].parents[1] / "results.json")["validation"]) == ["SFT, shared weights"]


def test_another_checkpoint_is_kept_beside_it(runs, gemma_path, tmp_path):
    standing = rows(tmp_path, gemma_path, runs["one"])["test"]["SFT"]
    place = f"../{runs['two'].parents[2].name}/two/checkpoints/last.ckpt"
    name = f"SFT (checkpoint {place})"
    for _ in range(2):  # the second time it replaces its own row
        with pytest.warns(UserWarning, match=r"results\.json keeps its row 'SFT', .* this one is 'SFT \(checkpoint "):
            found = rows(tmp_path, gemma_path, runs["two"])
        assert list(found["test"]) == ["SFT", name]
    assert found["test"]["SFT"] == standing
    assert found["about"]["test"][name]["settings"]["checkpoint"] == place


def test_other_settings_are_kept_beside_it(runs, gemma_path, tmp_path):
    rows(tmp_path, gemma_path, runs["one"])
    rows(tmp_path, gemma_path, runs["one"], data=Digits(size=4), temperature=0.5)
    found = rows(tmp_path, gemma_path, runs["one"], evaluation=EvaluationConfig(modes=("greedy",), seed=3))
    differing = ["data.size 4, sampling.temperature 0.5", "evaluation.modes ['greedy'], evaluation.seed 3"]
    assert list(found["test"]) == ["SFT", *(f"SFT ({words})" for words in differing)]


def test_settings_in_mappings_are_compared_too(runs, gemma_path, tmp_path):
    def data(**shares):
        found = Digits(size=8)
        found.shares = shares
        return found

    for shares in ({}, {"drop": 0.4}, {"drop": 0.2}, {"drop": 0.2}):
        found = rows(tmp_path, gemma_path, runs["one"], data=data(**shares))
    assert list(found["test"]) == ["SFT", "SFT (data.shares)", "SFT (data.shares) 2"]


def test_the_rows_of_a_training_are_not_those_of_another_runs_checkpoint(runs, gemma_path):
    folder = runs["one"].parents[1]
    standing = read(folder / "results.json")["validation"]["SFT"]
    with pytest.warns(UserWarning, match=r"keeps its row 'SFT'"):
        found = rows(folder, gemma_path, runs["two"], data=Digits(size=8, batch_size=8), command="validate")
    assert list(found["validation"]) == ["SFT", "SFT (checkpoint ../two/checkpoints/last.ckpt)"]
    assert found["validation"]["SFT"] == standing


def test_a_name_of_ones_own_is_taken_as_it_is(runs, gemma_path, tmp_path):
    rows(tmp_path, gemma_path, runs["one"], row="mine")
    found = rows(tmp_path, gemma_path, runs["two"], row="mine", data=Digits(size=4))
    assert list(found["test"]) == ["mine"]
    assert found["about"]["test"]["mine"]["settings"]["data"]["size"] == 4


def test_rows_of_an_older_file_are_replaced(runs, gemma_path, tmp_path):
    """Their rows do not name a checkpoint."""
    rows(tmp_path, gemma_path, runs["one"])
    results = json.loads((tmp_path / "results.json").read_text())
    del results["about"]["test"]["SFT"]["settings"]["checkpoint"]
    (tmp_path / "results.json").write_text(json.dumps(results))
    assert list(rows(tmp_path, gemma_path, runs["two"])["test"]) == ["SFT"]


def test_what_fit_adds_is_of_its_last_run(gemma_path, tmp_path):
    last = warmed_up(gemma_path, tmp_path)
    warmed_up(gemma_path, tmp_path, Digits(size=16, batch_size=8))
    found = rows(tmp_path, gemma_path, last, data=Digits(size=16), command="validate")
    assert list(found["validation"]) == ["SFT"]
    assert found["about"]["validation"]["SFT"]["settings"]["data"]["size"] == 16


@pytest.mark.parametrize(("steps", "ends"), [(3, False), (4, True), (-1, True)])
def test_a_phase_that_goes_on_or_was_cut_short_is_no_row_and_no_export(gemma_path, tmp_path, steps, ends):
    """Four steps, validated after the second and the fourth, and at the end of a run that ``max_steps`` stopped."""
    options = {"val_check_interval": 2, "max_epochs": 1, "num_sanity_val_steps": 0, "max_steps": steps}
    validated = Seen()
    run = quiet_trainer(tmp_path, PhaseSwitch(1, iterations=0), Results(), AdapterExport(), validated, **options)
    run.fit(module(gemma_path), Digits(size=16, batch_size=4))
    assert validated.rows == [[], ["SFT"]][: len(validated.rows)]
    assert list(read(tmp_path / "results.json").get("validation", {})) == ["SFT"] * ends
    assert sorted(path.name for path in (tmp_path / "adapters").iterdir()) == ["last"] + ["sft"] * ends


@pytest.mark.parametrize("command", ["fit", "test"])
def test_a_table_that_cannot_be_read_is_refused_before_a_model_loads(gemma_path, tmp_path, command):
    (tmp_path / "results.json").write_text("{")
    swirl, run = module(gemma_path), quiet_trainer(tmp_path, PhaseSwitch(1, iterations=0), Results())
    with pytest.raises(ValueError, match=r"results.json is not valid JSON .* move it away"):
        getattr(run, command)(swirl, Digits(size=8))
    assert swirl.model is None


def test_a_folder_in_its_place_is_told(tmp_path):
    (tmp_path / "results.json").mkdir()
    with pytest.raises(OSError, match=r"results\.json"):
        read(tmp_path / "results.json")


def test_no_row_of_processes_at_the_same_time_is_lost(gemma_path, tmp_path):
    """Tests of several checkpoints share a run's folder, and each reads the table, adds its row and writes."""
    names, count = ("a", "b"), 20
    with ThreadPoolExecutor() as pool:
        running = [pool.submit(run_module, "support.result_rows", tmp_path, gemma_path, name, count) for name in names]
        while not all((tmp_path / f"ready-{name}").exists() for name in names):
            assert not any(process.done() for process in running)
            time.sleep(0.05)
        (tmp_path / "go").touch()
        assert [process.result().returncode for process in running] == [0] * len(names)
    found = read(tmp_path / "results.json")
    every = {f"{name}-{number}" for name in names for number in range(count)}
    assert set(found["test"]) == set(found["about"]["test"]) == every


def test_long_names_leave_room_for_the_figures():
    names = ["SWIRL iteration 3", "SWIRL iteration 3 (checkpoint ../liquid_phase_one/checkpoints/last.ckpt)"]
    page = StringIO()
    Console(file=page, width=120).print(table({name: dict.fromkeys(COLUMNS, -1.0) for name in names}))
    text = page.getvalue()
    assert "SWIRL iteration 3 " in text
    assert all(heading in text for heading in COLUMNS.values())
    assert "…" not in text
