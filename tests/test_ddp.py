"""Two processes (gloo) against one."""

from __future__ import annotations

import json

import pytest
import torch

from support.cli import config
from support.processes import run_module, swirl
from swirl_lightning.callbacks import row_scores


@pytest.fixture(scope="module")
def runs(tmp_path_factory, gemma_path):
    """``pairs_per_step: 8`` on one process and on two, with batches of a step's size and of half of it."""
    out = tmp_path_factory.mktemp("ddp")
    for devices, cases in ((1, ["8-group", "8-batch"]), (2, ["4-group", "2-group", "4-batch"])):
        done = run_module("support.ddp_run", gemma_path, out / str(devices), devices, *cases)
        assert done.returncode == 0, done.stderr[-3000:]
    return {
        "one": out / "1" / "8-group",
        "two": out / "2" / "4-group",
        "two accumulated": out / "2" / "2-group",
        "one, scaled by the batch": out / "1" / "8-batch",
        "two, scaled by the batch": out / "2" / "4-batch",
    }


def load(folder):
    return {path.stem: torch.load(path, weights_only=True) for path in sorted(folder.glob("*.pt"))}


def test_pairs_per_step_makes_equally_many_steps_on_any_number_of_devices(runs):
    assert {name: (folder / "steps.txt").read_text() for name, folder in runs.items()} == dict.fromkeys(runs, "15")


def test_phases_switch_together_and_adapters_are_bit_equal_on_both_ranks(runs):
    two = load(runs["two"])
    stems = {name.rsplit("-", 1)[0] for name in two}
    assert sorted(stems) == ["0-warmup", "1-fwm", "2-idm", "3-fwm", "4-idm"]
    for stem in stems:
        first, second = two[f"{stem}-0"], two[f"{stem}-1"]
        assert all(torch.equal(first[k], second[k]) for k in first), stem


@pytest.mark.parametrize("name", ["two", "two accumulated", "two, scaled by the batch"])
def test_two_processes_train_the_same_weights_as_one(runs, name):
    alone = "one, scaled by the batch" if name.endswith("batch") else "one"
    one, two = load(runs[alone]), load(runs[name])
    assert len(one) == 5
    for epoch, state in one.items():
        for key, value in state.items():
            torch.testing.assert_close(two[epoch][key], value, atol=1e-9, rtol=0, msg=lambda m, e=epoch: f"{e}: {m}")


def test_two_processes_measure_the_same_as_one(runs):
    one = json.loads((runs["one"] / "metrics-0.json").read_text())
    two = [json.loads((runs["two"] / f"metrics-{rank}.json").read_text()) for rank in (0, 1)]
    assert len(one) > 5
    assert two[0] == two[1]
    for key, value in one.items():
        assert two[0][key] == pytest.approx(value, abs=1e-5), key


def test_ranks_that_outnumber_the_rows_evaluate_as_one_process(tmp_path, gemma_path):
    """1 row on 3 ranks, one row fewer in the last batch, and a last batch that a rank has no row of."""
    cases = {"1x2": 1, "5x2": 5, "8x2": 8}
    for devices in ("1", "3"):
        # a rank that waits for another waits for ever: the time limit ends it
        done = run_module("support.ddp_rows", gemma_path, tmp_path / devices, devices, *cases)
        assert done.returncode == 0, done.stderr[-3000:]
    for case, rows in cases.items():
        one, three = tmp_path / "1" / case, tmp_path / "3" / case
        alone = json.loads((one / "metrics-0.json").read_text())
        assert {key.split("/")[0] for key in alone} == {"val", "test"}
        assert len(alone) > 10
        for rank in range(3):
            assert json.loads((three / f"metrics-{rank}.json").read_text()) == pytest.approx(alone, abs=1e-5), case
        results = json.loads((three / "results.json").read_text())
        assert (list(results["validation"]), list(results["test"])) == (["SFT"], ["SFT"])
        assert (scores := row_scores.read(one)).keys() == {f"test-{n}" for n in range(rows)}
        for name, found in row_scores.read(three).items():
            assert found == pytest.approx(scores.pop(name), abs=1e-5), case
        assert not scores
        for mode in ("sampled", "greedy", "predict"):
            for folder in (one, three):
                lines = [
                    json.loads(line)["id"]
                    for path in (folder / "predictions").glob(f"{mode}-rank*.jsonl")
                    for line in path.read_text().splitlines()
                ]
                assert sorted(lines) == [f"test-{n}" for n in range(rows)], (case, mode)


@pytest.mark.parametrize(("rank", "busy"), [(0, True), (1, False)])
def test_a_rank_that_fails_ends_the_others_with_its_message(tmp_path, gemma_path, rank, busy):
    """A rank that waits for another, or is busy, ends too: run_module would raise TimeoutExpired."""
    fail = [f"--trainer.callbacks.{name}={value}" for name, value in (("step", 1), ("rank", rank), ("busy", busy))]
    spread = ("--trainer.strategy=ddp", "--trainer.devices=2", "--trainer.callbacks+=support.world.FailAt")
    done = swirl("fit", "-c", config(tmp_path, gemma_path), *spread, *fail)
    assert done.returncode != 0
    assert "error: record 17 is broken" in done.stderr
    assert "Traceback" not in done.stderr
