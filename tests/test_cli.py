"""The console script, as a user types it."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import constants
from lightning.pytorch.loggers import TensorBoardLogger

from support.cli import here, longer_config
from support.processes import swirl
from support.tiny import gemma_folder
from swirl_lightning.cli import swirl_cli

TESTS = Path(__file__).parent


@pytest.fixture
def refused(capsys):
    """Return the message with which the command ends instead of a traceback."""

    def run(*args):
        with pytest.raises(SystemExit) as end:
            here(*args)
        told = capsys.readouterr().err
        return told if isinstance(end.value.code, int) else f"{end.value.code}"

    return run


@pytest.fixture(scope="module")
def finished(tmp_path_factory, gemma_path):
    """A run left alone: 3 epochs of 4 steps, a checkpoint after every step."""
    folder = tmp_path_factory.mktemp("alone")
    here("fit", "-c", longer_config(folder, gemma_path))
    return folder


def adapters(path):
    return torch.load(path, weights_only=True)["state_dict"]


def test_fit_writes_results_config_and_checkpoints(finished):
    run = finished / "runs" / "r"
    assert set(json.loads((run / "results.json").read_text())["validation"]) == {"SFT", "SWIRL iteration 1"}
    assert (run / "config.yaml").exists()
    assert (run / "checkpoints" / "last.ckpt").exists()


def test_a_killed_run_resumes_to_the_same_bits(finished, tmp_path, gemma_path):
    """SIGKILL in the middle of Phase I, then --ckpt_path last, with dropout on."""
    path = longer_config(tmp_path, gemma_path)
    killed = swirl("fit", "-c", path, "--trainer.callbacks+=support.world.KillAt", "--trainer.callbacks.step=6")
    assert killed.returncode == -9
    last = torch.load(tmp_path / "runs" / "r" / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["global_step"] == 6
    assert last["swirl"]["label"] == "fwm 1 unfinished"
    resumed = swirl("fit", "-c", path, "--ckpt_path", "last")
    assert resumed.returncode == 0, resumed.stderr[-3000:]
    assert "Restor" in resumed.stderr + resumed.stdout
    told = resumed.stderr.replace("UserWarning: the training goes on with other settings", "")  # without KillAt
    for not_for_the_user in ("Tip:", "kernels-community", "is deprecated", "Warning"):
        assert not_for_the_user not in told
    alone = adapters(finished / "runs" / "r" / "checkpoints" / "last.ckpt")
    again = adapters(tmp_path / "runs" / "r" / "checkpoints" / "last.ckpt")
    assert alone.keys() == again.keys()
    assert all(torch.equal(alone[k], again[k]) for k in alone)


def test_last_is_written_within_an_epoch_too(tmp_path, gemma_path, monkeypatch):
    """A run that stops in the fourth step of Phase I, whose epochs have 4 steps."""
    monkeypatch.setattr("swirl_lightning.cli.CHECKPOINT_STEPS", 3)
    broken = [{"class_path": "support.world.BrokenModel", "init_args": {"step": 7, "what": "gradient"}}]
    with pytest.raises(SystemExit):
        here("fit", "-c", longer_config(tmp_path, gemma_path, **{"trainer/callbacks": broken}))
    saved = tmp_path / "runs" / "r" / "checkpoints"
    assert torch.load(saved / "last.ckpt", weights_only=True)["global_step"] == 6
    assert sorted(path.name for path in saved.iterdir()) == ["epoch=0.ckpt", "last.ckpt"]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("config.yaml", "folder"),
        ("results.json", "folder"),
        ("results.lock", "folder"),
        ("adapters", "file"),
        ("", "file"),
    ],
)
def test_what_stands_in_the_way_of_a_run_is_told_before_it(tmp_path, gemma_path, name, kind):
    path, run = longer_config(tmp_path, gemma_path), tmp_path / "runs" / "r" / name
    run.parent.mkdir(parents=True, exist_ok=True)
    run.mkdir() if kind == "folder" else run.touch()
    with pytest.raises(SystemExit) as end:
        here("fit", "-c", path)
    assert end.value.code == f"error: {run} is a {kind}, and a run writes something else there: move it away"


WRITTEN = [("fit", "adapters"), ("test", "results.lock"), ("predict", "predictions"), ("fit", "config.yaml")]


@pytest.mark.parametrize(("command", "name"), WRITTEN)
def test_what_may_not_be_written_is_told_before_the_base_loads(tmp_path, gemma_path, monkeypatch, command, name):
    path, place = longer_config(tmp_path, gemma_path), tmp_path / "runs" / "r" / name
    place.parent.mkdir(parents=True)
    place.touch() if place.suffix else place.mkdir()
    may = os.access
    monkeypatch.setattr(os, "access", lambda path, *kind: path != place and may(path, *kind))  # root may do all
    with pytest.raises(SystemExit) as end:
        here(command, "-c", path)
    assert str(end.value.code).startswith(f"error: {place} may not be written")


@pytest.mark.parametrize("window", [1, 2])
def test_sigterm_saves_at_the_next_batch_and_ends_with_its_own_code(finished, tmp_path, gemma_path, caplog, window):
    """In the second step of Phase I; checkpoints of its own accord at the end of epochs alone."""
    own = [{"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": {"save_last": True}}]
    path, last = (
        longer_config(tmp_path, gemma_path, **{"trainer/callbacks": own}),
        tmp_path / "runs/r/checkpoints/last.ckpt",
    )
    steps = 4 // window
    options = ["--trainer.accumulate_grad_batches", str(window)]
    kill = ["--trainer.callbacks+=support.world.KillAt", f"--trainer.callbacks.step={steps + 1}"]
    with pytest.raises(SystemExit) as end:
        here("fit", "-c", path, *options, *kill, "--trainer.callbacks.name=SIGTERM")
    assert end.value.code == 128 + 15
    assert "asked to end: saved" in caplog.text
    assert "weights_only" not in caplog.text
    saved = torch.load(last, weights_only=True)
    assert saved["global_step"] == (steps + 2 if window == 1 else steps + 1)
    assert any(saved["swirl"]["window"]) == (window == 2)  # half of one
    here("fit", "-c", path, *options, "--ckpt_path", "last")
    if window == 2:
        finished = tmp_path / "alone"
        finished.mkdir()
        here("fit", "-c", longer_config(finished, gemma_path), *options)
    alone, again = adapters(finished / "runs" / "r" / "checkpoints" / "last.ckpt"), adapters(last)
    assert alone.keys() == again.keys()
    assert all(torch.equal(alone[k], again[k]) for k in alone)


def test_sigterm_to_all_processes_of_a_run_ends_no_worker_before_it(tmp_path, gemma_path):
    """As schedulers send it."""
    own = [{"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": {"save_last": True}}]
    path, last = (
        longer_config(tmp_path, gemma_path, **{"trainer/callbacks": own}),
        tmp_path / "runs/r/checkpoints/last.ckpt",
    )
    kill = [
        "--trainer.callbacks+=support.world.KillAt",
        "--trainer.callbacks.step=5",
        "--trainer.callbacks.workers=true",
    ]
    with pytest.raises(SystemExit) as end:
        here("fit", "-c", path, "--data.num_workers", "2", *kill, "--trainer.callbacks.name=SIGTERM")
    assert end.value.code == 128 + 15
    assert torch.load(last, weights_only=True)["global_step"] == 6
    assert not multiprocessing.active_children()


def test_a_metric_to_stop_at_that_does_not_exist_is_told_in_one_line(tmp_path, gemma_path):
    early = {"class_path": "lightning.pytorch.callbacks.EarlyStopping", "init_args": {"monitor": "val/los"}}
    path = longer_config(tmp_path, gemma_path, **{"trainer/callbacks": [early], "data/init_args/size": 8})
    with pytest.raises(
        SystemExit, match=r"^error: trainer\.callbacks: .*`val/los` which is not available.*val/idm"
    ) as end:
        here("fit", "-c", path, "--phase_switch.iterations", "0")
    assert len(str(end.value.code).splitlines()) == 1


def test_test_adds_its_row_and_keeps_the_others(finished, capsys):
    path, run = finished / "config.yaml", finished / "runs" / "r"
    here("test", "-c", path, "--ckpt_path", run / "checkpoints" / "last.ckpt")
    results = json.loads((run / "results.json").read_text())
    assert set(results) == {"validation", "test", "about"}
    assert set(results["test"]) == {"SWIRL iteration 1"}
    assert "SWIRL iteration 1" in capsys.readouterr().out
    assert yaml.safe_load((run / "config.yaml").read_text())["phase_switch"]["iterations"] == 1


def test_predict_writes_every_row_and_generates_none_twice(finished):
    path, run = finished / "config.yaml", finished / "runs" / "r"
    written, sizes = run / "predictions" / "predict-rank0.jsonl", []
    for _ in range(2):
        here("predict", "-c", path, "--ckpt_path", run / "checkpoints" / "last.ckpt")
        rows = [json.loads(line) for line in written.read_text().splitlines()]
        assert sorted(row["id"] for row in rows) == sorted(f"test-{n}" for n in range(32))
        assert all(row["predicted_action"] is not None and row["predicted_state"] is not None for row in rows)
        sizes.append((run / "predictions" / "generated-rank0.jsonl").stat().st_size)
    assert sizes[0] == sizes[1]
    # longer actions may be generated: what is kept of shorter ones does not stand for them
    longer = ("--model.init_args.backbone.init_args.max_action_tokens", "6")
    here("predict", "-c", path, "--ckpt_path", run / "checkpoints" / "last.ckpt", *longer)
    assert (run / "predictions" / "generated-rank0.jsonl").stat().st_size > sizes[1]


@pytest.mark.parametrize(
    ("changes", "args", "words"),
    [
        ({"model/init_args/grpo/group_sizes": 3}, [], ["group_sizes"]),
        ({}, ["--trainer.max_epoch", "3"], ["trainer.max_epoch is no option; did you mean 'trainer.max_epochs'?"]),
        ({"model/init_args/grpo/group_size": 1}, [], ["model.grpo.group_size must lie in [2, 100000], got 1"]),
        ({"model/init_args/backbone/class_path": "swirl_lightning.backbones.Nothing"}, [], ["Nothing"]),
        ({"phase_switch/phases": ["fwm", "imd"]}, [], ["imd", "bootstrap"]),
        ({}, ["--ckpt_path", "nowhere.ckpt"], ["nowhere.ckpt", "does not exist"]),
        ({}, ["--ckpt_path", "{broken}"], ["cannot be read"]),
        ({"model/init_args/backbone/init_args/model_name_or_path": "builtin/none"}, [], ["builtin/none"]),
        ({"model/init_args/backbone/init_args/model_name_or_path": "./no/such/folder"}, [], ["no/such/folder"]),
    ],
    ids=["key", "abbreviation", "value", "backbone", "phase", "missing ckpt", "corrupt ckpt", "builtin", "no model"],
)
def test_bad_input_is_one_clear_message_before_training(
    tmp_path, gemma_path, finished, refused, monkeypatch, changes, args, words
):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    broken = tmp_path / "broken.ckpt"
    whole = (finished / "runs" / "r" / "checkpoints" / "last.ckpt").read_bytes()
    broken.write_bytes(whole[: len(whole) // 2])
    args = [arg.format(broken=broken) for arg in args]
    message = refused("fit", "-c", longer_config(tmp_path, gemma_path, **changes), *args)
    assert "error: " in message
    for word in words:
        assert word in message
    assert not list(tmp_path.rglob("last.ckpt"))


def test_a_checkpoint_of_another_base_is_refused(finished, refused, tmp_path):
    other = gemma_folder(tmp_path / "other", seed=3)
    last = finished / "runs" / "r" / "checkpoints" / "last.ckpt"
    assert "has other weights" in refused("test", "-c", longer_config(tmp_path, other), "--ckpt_path", last)
    here("export", finished / "runs" / "r", "--merged", "--to", tmp_path / "merged")
    merged = longer_config(tmp_path, tmp_path / "merged" / "fwm")  # the adapter would count twice
    assert "has other weights" in refused("test", "-c", merged, "--ckpt_path", last)


def default_kinds(*args):
    """Class names of the callbacks that the CLI gives the Trainer, and its logger."""
    model = ("--model", "swirl_lightning.SWIRL", "--model.backbone", "swirl_lightning.backbones.Liquid")
    cli = swirl_cli(
        [*model, "--data", "support.world.Digits", "--trainer.accelerator", "cpu", *map(str, args)], run=False
    )
    return [type(callback).__name__ for callback in cli.trainer.callbacks], cli.trainer.logger


def test_every_run_has_the_default_logger_and_callbacks(tmp_path):
    kinds, logger = default_kinds("--trainer.default_root_dir", tmp_path / "mine")
    watched = ["MemoryReport", "Results", "TransitionImages", "ActionTable", "CollapseWatch", "AdapterExport"]
    rest = ["Throughput", "HyperparameterText", "LearningRateMonitor", "PhaseProgressBar", "ModelCheckpoint"]
    assert all(kinds.count(kind) == 1 + (kind == "ModelCheckpoint") for kind in [*watched, *rest])
    assert isinstance(logger, TensorBoardLogger)
    assert Path(logger.log_dir) == tmp_path / "mine"


@pytest.mark.parametrize(
    ("args", "gone"),
    [
        (["--trainer.logger", "false"], {"LearningRateMonitor"}),
        (["--trainer.enable_checkpointing", "false"], {"ModelCheckpoint"}),
        (["--trainer.enable_progress_bar", "false"], {"PhaseProgressBar"}),
    ],
)
def test_what_the_trainer_switches_off_is_left_out(tmp_path, args, gone):
    root = ["--trainer.default_root_dir", tmp_path]
    everything, (kinds, logger) = default_kinds(*root)[0], default_kinds(*root, *args)
    assert set(everything) - set(kinds) == gone
    assert (logger is None) == (gone == {"LearningRateMonitor"})


def test_own_callbacks_and_logger_take_the_place_of_the_defaults(tmp_path):
    own = [
        {"class_path": "swirl_lightning.callbacks.ActionTable", "init_args": {"every_n_steps": 7}},
        {"class_path": "lightning.pytorch.callbacks.TQDMProgressBar"},
        {"class_path": "lightning.pytorch.callbacks.OnExceptionCheckpoint", "init_args": {"dirpath": str(tmp_path)}},
    ]
    csv = {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": str(tmp_path)}}
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump({"trainer": {"callbacks": own, "logger": csv, "default_root_dir": str(tmp_path)}}))
    kinds, logger = default_kinds("--config", path)
    assert kinds.count("ActionTable") == kinds.count("TQDMProgressBar") == kinds.count("OnExceptionCheckpoint") == 1
    assert "PhaseProgressBar" not in kinds
    assert type(logger).__name__ == "CSVLogger"


def test_a_development_run_goes_through_and_leaves_no_file(tmp_path, gemma_path):
    path, run = longer_config(tmp_path, gemma_path), tmp_path / "run"
    settings = yaml.safe_load(path.read_text())
    del settings["trainer"]["logger"], settings["trainer"]["callbacks"]
    path.write_text(yaml.safe_dump(settings))
    here("fit", "-c", path, "--trainer.default_root_dir", run, "--trainer.fast_dev_run", "2")
    assert not run.exists()


def test_a_development_run_beside_a_finished_one_tells_of_itself_alone(finished, tmp_path, capsys):
    """No table of the other's results, and nothing of its own, whose two batches would look like a result."""
    run = shutil.copytree(finished / "runs" / "r", tmp_path / "run")
    for kind in ("predictions", "row_scores"):
        (run / kind).mkdir(exist_ok=True)
        for name in ("predict-rank0", "greedy-rank0", "sampled-rank0", "rank0"):
            (run / kind / f"{name}.jsonl").write_text("of a real run\n")
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    place = ("-c", run / "config.yaml", "--trainer.default_root_dir", run, "--trainer.fast_dev_run", "2")
    here("fit", *place)
    scores = [f"--trainer.callbacks+=swirl_lightning.callbacks.{name}" for name in ("RowScores", "Predictions")]
    here("test", *place, "--ckpt_path", run / "checkpoints" / "last.ckpt", *scores)
    here("predict", *place, "--ckpt_path", run / "checkpoints" / "last.ckpt")
    assert "results.json" not in capsys.readouterr().out
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_a_test_config_is_laid_over_the_config_of_the_run(finished, tmp_path, recwarn):
    """Its data, folder and evaluation; the run's model. The run's own results stay as they are."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"before": f"{n}7", "after": f"7{n}", "action": "swap"}) + "\n" for n in "123"))
    settings = {
        "trainer": {
            "default_root_dir": str(tmp_path / "suite"),
            "callbacks+": [{"class_path": "swirl_lightning.callbacks.Predictions"}],
            "logger": None,
        },
        "model": {"init_args": {"evaluation": {"modes": ["greedy"]}}},
        "data": {"class_path": "swirl_lightning.data.JSONLTransitions", "init_args": {"test": str(rows)}},
    }
    overlay, run = tmp_path / "overlay.yaml", finished / "runs" / "r"
    overlay.write_text(yaml.safe_dump(settings))
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    here("test", "-c", run / "config.yaml", "-c", overlay, "--ckpt_path", run / "checkpoints" / "last.ckpt")
    assert not [warning for warning in recwarn if "class_path" in str(warning.message)]
    results = json.loads((tmp_path / "suite" / "results.json").read_text())
    (values,) = results["test"].values()
    assert "fwm/greedy/exact_match" in values
    assert not [key for key in values if "sampled" in key]
    assert results["about"]["test"]["SWIRL iteration 1"]["suite"] == "JSONLTransitions"
    predicted = (tmp_path / "suite" / "predictions" / "greedy-rank0.jsonl").read_text().splitlines()
    assert len(predicted) == 3
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("key", ["quantization", "init_args.quantization", "revision"])
def test_null_for_an_option_of_the_backbone_is_none(key):
    model = ("--model", "swirl_lightning.SWIRL", "--model.backbone", "swirl_lightning.backbones.Liquid")
    args = [*model, f"--model.backbone.{key}", "null", "--data", "support.world.Digits", "--trainer.accelerator", "cpu"]
    backbone = swirl_cli(args, run=False).model.backbone
    assert getattr(backbone, key.rsplit(".", 1)[-1]) is None
