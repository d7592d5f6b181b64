"""Two processes (gloo) against one."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from support.cli import config
from support.processes import free_port, run_module, swirl
from swirl_lightning.callbacks import row_scores


def load(folder):
    return {path.stem: torch.load(path, weights_only=True) for path in sorted(folder.glob("*.pt"))}


@pytest.fixture(scope="module")
def one_process(tmp_path_factory, gemma_path):
    """Runs with ``pairs_per_step: 8`` on one process, by scale of the advantages."""
    folder = tmp_path_factory.mktemp("one")
    done = run_module("support.ddp_run", gemma_path, folder, 1, "8-group", "8-batch")
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def test_two_processes_train_the_same_weights_as_one(tmp_path, gemma_path, one_process):
    """``pairs_per_step: 8`` on one process and on two, with batches of a step's size and of half of it."""
    done = run_module("support.ddp_run", gemma_path, tmp_path, 2, "4-group", "2-group", "4-batch", ranks=2, slurm=True)
    assert done.returncode == 0, done.stderr[-3000:]
    folders = {folder.name: folder for place in (one_process, tmp_path) for folder in place.iterdir()}
    assert {case: (folder / "steps.txt").read_text() for case, folder in folders.items()} == dict.fromkeys(folders, "6")
    trained = {case: load(folder) for case, folder in folders.items()}
    for two, one in (("4-group", "8-group"), ("2-group", "8-group"), ("4-batch", "8-batch")):
        assert list(trained[one]) == ["0-warmup-0", "1-fwm-0", "2-idm-0"]
        for name, state in trained[one].items():
            first, second = trained[two][name], trained[two][name.removesuffix("0") + "1"]
            for key, value in state.items():
                assert torch.equal(first[key], second[key]), (two, name)  # on both ranks
                torch.testing.assert_close(
                    first[key], value, atol=1e-9, rtol=0, msg=lambda m, at=(two, name): f"{at}: {m}"
                )
    measured = [
        json.loads((folders[case] / f"metrics-{rank}.json").read_text())
        for case, rank in (("8-group", 0), ("4-group", 0), ("4-group", 1))
    ]
    assert len(measured[0]) > 5
    assert measured[1] == measured[2] == pytest.approx(measured[0], abs=1e-5)
    fits = {case: json.loads((folder / "fit-0.json").read_text()) for case, folder in folders.items()}
    for two, one in (("4-group", "8-group"), ("2-group", "8-group"), ("4-batch", "8-batch")):
        expected = {"1/warmup/fwm_nll", "3/fwm/reward", "3/fwm/anchor_nll", "5/idm/entropy", "6/idm/loss"}
        assert expected <= fits[one]["metrics"].keys()
        assert fits[two]["metrics"] == pytest.approx(fits[one]["metrics"], abs=1e-6)
    size = {role: sum(v.numel() for k, v in state.items() if k.startswith(f"{role}.")) for role in ("fwm", "idm")}
    size["warmup"] = size["fwm"] + size["idm"]
    for case, others in (("4-group", 5), ("2-group", 5), ("4-batch", 6)):
        # two steps of a phase: gradients of what it trains alone; besides them what they are divided by, the metrics,
        # whether rewards, gradients and weights are finite, and the spread of the rewards
        told = {
            phase: {"gradients": 2 * count, "other tensors": 2 * (4 if phase == "warmup" else others)}
            for phase, count in size.items()
        }
        assert fits[case]["reduced"] == told, case


def test_two_nodes_of_torchrun_train_the_same_weights_as_one_process(tmp_path, gemma_path, one_process):
    """Two agents with two ranks each; a step's 8 pairs are 2 a rank."""
    agent, port, case = "support.torchrun_agent", free_port(), "2-group"
    with ThreadPoolExecutor() as pool:
        agents = [pool.submit(run_module, agent, node, port, gemma_path, tmp_path, case) for node in (0, 1)]
    for agent in agents:
        assert agent.result().returncode == 0, agent.result().stderr[-3000:]
    alone, together = load(one_process / "8-group"), load(tmp_path / case)
    assert len(together) == 4 * len(alone)
    for name, state in alone.items():
        for rank in range(4):
            for key, value in state.items():
                found = together[name.removesuffix("0") + str(rank)][key]
                torch.testing.assert_close(found, value, atol=1e-9, rtol=0)
    expected = json.loads((one_process / "8-group" / "fit-0.json").read_text())["metrics"]
    for rank in range(4):
        found = json.loads((tmp_path / case / f"fit-{rank}.json").read_text())["metrics"]
        assert found == pytest.approx(expected, abs=1e-6)


def test_ranks_that_outnumber_the_rows_evaluate_as_one_process(tmp_path, gemma_path):
    """1 row on 3 ranks, one row fewer in the last batch, and a last batch that a rank has no row of."""
    cases = {"1x2": 1, "5x2": 5, "8x2": 8}
    for devices in (1, 3):
        # a rank that waits for another waits for ever: the time limit ends it
        done = run_module("support.ddp_rows", gemma_path, tmp_path / str(devices), devices, *cases, ranks=devices)
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
