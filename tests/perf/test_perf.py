"""The measuring scripts at the scale of a test: their methods agree, and their tables are complete."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import asdict, replace

import pytest
import torch
from perf.common import CASES, SPECIALS, build_base, small
from perf.floor import Floor, Rates
from perf.worker import work

from perf import drafts, gpu_day, gpu_stage, gpu_stages, lora, runs, scaling, step
from support.attention import skip_if_torch_cannot_attend
from support.processes import run_module
from swirl_lightning.engine import vocabulary


@pytest.mark.parametrize("name", list(CASES))
def test_plain_and_ours_give_the_same_log_probabilities(name, tmp_path):
    case = small(CASES[name])
    build_base(case, tmp_path)
    job = {"case": asdict(case), "folder": str(tmp_path), "device": "cpu", "threads": 1, "profile": False}
    plain = work(job | {"method": "plain"})
    assert 0 < plain["log_prob_gap"] < 1e-4
    for phase, parts in plain["seconds"].items():
        booked = {"sample", "reward", "reference", "policy update"} | ({"latent action"} if phase == "fwm" else set())
        assert parts.keys() == booked | {"step"}
        assert parts["step"] == pytest.approx(sum(parts[part] for part in booked))


def test_the_step_table(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(runs.subprocess, "run", lambda command, **_: run_module(*command[2:]))
    monkeypatch.setattr(step, "small", lambda case: replace(small(case), pairs=2, completion=8))
    out = tmp_path / "step.json"
    options = f"--case text --scale small --repeats 1 --threads 1 --json {out} --methods".split()
    step.main([*options, "ours", "plain", "--profile"])
    told = capsys.readouterr().out
    assert "ours faster" in told
    assert "self time" in told
    found = json.loads(out.read_text())
    assert [(row["method"], row["phase"]) for row in found["rows"]] == [
        (method, phase) for method in ("ours", "plain") for phase in ("Phase I", "Phase II", "both")
    ]
    for row in found["rows"]:
        assert all(row["seconds"][part] > 0 for part in ("sample", "reward", "reference", "policy update"))
        assert row["peak_bytes"] > 0
        assert row["tokens_per_second"] > 0
        assert 0 < row["floor_share"] < 1
    for method in ("ours", "plain"):
        assert found["runs"][method][0]["operations"].keys() == {"fwm", "idm"}


def test_the_table_of_drafts(minigrid, tmp_path, capsys):
    out = tmp_path / "drafts.json"
    drafts.main(f"{minigrid} --prompts 1 --groups 2 --repeats 1 --threads 1 --json {out}".split())
    assert "times as fast" in capsys.readouterr().out
    found = json.loads(out.read_text())["seconds"]
    assert found.keys() == {"2"}
    assert all(seconds > 0 for row in found.values() for seconds in row.values())


def test_the_table_of_lora_layers(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(lora, "SHAPES", ((64, 128),))
    out = tmp_path / "lora.json"
    lora.main(f"--rows 8 --rank 4 --repeats 1 --threads 1 --json {out}".split())
    layers = json.loads(out.read_text())["layers"]
    assert [layer["dtype"] for layer in layers] == ["torch.float32", "torch.bfloat16"]
    assert all(layer["peft"] > 0 and layer["ours"] > 0 for layer in layers)
    assert "ratio" in capsys.readouterr().out


def test_the_floor_by_hand():
    """Products alone, one a second: the reference is one forward pass over shared prompts."""
    case = small(CASES["text"])
    floor = Floor(case, Rates(flops=1.0, bytes=float("inf"))).seconds()
    hidden, inner, rows = case.hidden, case.intermediate, case.vocabulary - SPECIALS
    weights = case.layers * (4 * hidden**2 + 3 * hidden * inner)
    adapters = case.layers * case.rank * (8 * hidden + 3 * (hidden + inner))
    members = case.pairs * case.group_size
    tokens = case.pairs * case.prompt + members * case.completion
    attended = case.pairs * case.prompt**2 / 2 + members * case.completion * (case.prompt + case.completion / 2)
    head = 2 * hidden * rows * members * case.completion
    forward = 2 * (weights + adapters) * tokens + 4 * hidden * case.layers * attended + head
    assert floor["fwm"]["reference"] == pytest.approx(forward)
    assert forward * 2 < floor["fwm"]["policy update"] < forward * 3


def test_axes_and_ratios():
    axes = scaling.axes(CASES["text"])
    assert [case.prompt for case in axes["group size"].values()] == [1024] * 4
    assert list(axes["vocabulary"]) == [32_000, 64_000, 128_000, 264_192]
    seconds = {"fwm": {"step": 2.0}, "idm": {"step": 1.0}}
    more = {"fwm": {"step": 3.0}, "idm": {"step": 1.5}}
    ratios = scaling.compare(
        {
            "group size": [{"value": 8, "seconds": seconds}, {"value": 16, "seconds": more}],
            "vocabulary": [{"value": 32_000, "peak": 100}, {"value": 264_192, "peak": 108}],
        }
    )
    assert ratios["time of G 16 / G 8, both phases"] == pytest.approx(1.5)
    assert ratios["memory of vocabulary 264,192 / 32,000"] == pytest.approx(1.08)


def test_the_gpu_day_goes_on_where_it_stopped(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(gpu_day.STAGES, "graphs", 130)  # on a machine that is busy otherwise
    monkeypatch.setattr(gpu_day, "_call", lambda command, limit, **_: run_module(*command[2:]).returncode)
    day = ["--out", str(tmp_path), "--device", "cpu", "--scale", "small", "--only", "graphs"]
    log = tmp_path / "results.jsonl"
    assert gpu_day.main([*day, "--minutes", "0"]) == gpu_day.MORE_IS_LEFT
    gpu_day.write(log, stage="graphs", status="failed (1)", seconds=1.0)
    gpu_day.write(log, stage="graphs", status="cut", seconds=1.0)
    with open(log, "a") as file:
        file.write('{"stage": "gra\n')  # a kill
    assert gpu_day.main(day) == 0
    rows = gpu_day.read(log)
    assert [row["status"] for row in rows if "status" in row] == ["failed (1)", "cut", "done"]
    assert "| graphs | done |" in (tmp_path / "report.md").read_text()
    assert "bfloat16: equal tokens | True |" in capsys.readouterr().out
    assert gpu_day.main(day) == 0
    assert gpu_day.read(log) == rows
    for tries in (1, 2):
        assert gpu_day._is_left(log, "smoke", tries)
        gpu_day.write(log, stage="smoke", status="out of time", seconds=1.0)
    assert not gpu_day._is_left(log, "smoke", 2)


def test_a_stage_out_of_time_leaves_no_process_behind(tmp_path):
    told = tmp_path / "told"
    child = f"import time; time.sleep(2); open({str(told)!r}, 'w')"
    parent = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {child!r}]); time.sleep(60)"
    with pytest.raises(subprocess.TimeoutExpired):
        gpu_day._call([sys.executable, "-c", parent], 1)
    time.sleep(2)
    assert not told.exists()


def test_steps_are_replayed_in_one_of_two_ways_that_are_compared(tmp_path, monkeypatch):
    skip_if_torch_cannot_attend(torch.bfloat16)
    made, tiny = [], gpu_stages._tiny
    monkeypatch.setattr(gpu_stages, "_tiny", lambda *args, **kwargs: made.append(tiny(*args, **kwargs)) or made[-1])
    gpu_stages.graphs(gpu_stages.Stage("graphs", "cpu", True, tmp_path))
    ways = [module.models.engine.config.replays(torch.device("cuda"), 40) for module in made]
    assert ways == 2 * [False, True, False]
    found = {row["what"]: row["value"] for row in gpu_day.read(tmp_path / "results.jsonl")}
    for kind, way in (("float32", ""), ("bfloat16", ""), ("float32", " from drafts")):
        assert found[f"{kind}: equal tokens{way}"] is True
    assert not [what for what, value in found.items() if str(value).startswith("FAILED")], found


@pytest.mark.parametrize("name", ["parity", "decode", "update", "products", "shipped"])
def test_a_stage_of_the_gpu_day_finds_its_numbers_and_fails_nowhere(name, tmp_path, monkeypatch):
    skip_if_torch_cannot_attend(torch.bfloat16)
    monkeypatch.setattr(gpu_stage, "measure", lambda *_: Rates(flops=1e12, bytes=1e11))  # takes seconds on CPUs
    chunk = vocabulary.LOGITS_PER_CHUNK
    gpu_stages.STAGES[name](gpu_stages.Stage(name, "cpu", True, tmp_path))
    assert chunk == vocabulary.LOGITS_PER_CHUNK
    found = {row["what"]: row["value"] for row in gpu_day.read(tmp_path / "results.jsonl")}
    assert not [what for what, value in found.items() if str(value).startswith("FAILED")], found
    assert {
        "parity": {"float32: log-probability, largest gap": 0.0, "bfloat16: share of equal tokens": 1.0},
        "decode": {},
        "update": {},
        "shipped": {},
        "products": {},
    }[name].items() <= found.items()
    names = {
        "decode": {"floor, NF4, 8 rows: ms a step", "dense, 8 rows: ms a step", "generate, 8 rows: ms a step"},
        "update": {"floor: update, s", "dense: update, s", "NF4, plain: whole rows: update, s"},
        "shipped": {"fwm: s a pair", "idm: s a pair"},
        "products": {"8 tokens, 64 to 128"},
    }
    assert names.get(name, set()) <= found.keys()
