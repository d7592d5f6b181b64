"""Action tables, collapse watch, export, throughput, hyperparameters."""

from types import SimpleNamespace

import pytest
import torch
from lightning import Callback
from lightning.pytorch.loggers.logger import DummyLogger

from support.processes import run_module
from support.runs import Data, Model, events, fit, texts, trainer
from support.trainers import quiet_trainer
from swirl_lightning.callbacks import (
    ActionTable,
    AdapterExport,
    CollapseWatch,
    HeldOutStates,
    HyperparameterText,
    Throughput,
)


def scalars(found, tag):
    return [(event.step, event.value) for event in found.Scalars(tag)]


# ---- ActionTable -------------------------------------------------------------------------------------
def test_tables_of_both_phases(tmp_path):
    found = fit(tmp_path, [ActionTable(max_rows=2)])
    (latent,) = texts(found, "fwm/actions").values()
    lines = latent.splitlines()
    assert lines[0] == "| transition | latent action z | mean reward | best | worst |"
    assert len(lines) == 4
    assert "| turn left | -1.864 | -1.727 | -2.000 |" in lines[2]
    (sampled,) = texts(found, "idm/actions").values()
    lines = sampled.splitlines()
    assert len(lines) == 2 + 2 * 3
    rewards = [float(line.split("|")[3]) for line in lines[2:]]
    assert rewards[:3] == sorted(rewards[:3], reverse=True)
    assert [bool(line.split("|")[1].strip()) for line in lines[2:]] == [True, False, False] * 2


def test_cells_cannot_break_the_table(tmp_path):
    found = fit(tmp_path, [ActionTable()], model=Model(actions=["a | b\nc `d`", ""]))
    (sampled,) = texts(found, "idm/actions").values()
    assert all(line.count("|") == 5 for line in sampled.splitlines())
    assert "a &#124; b c &#96;d&#96;" in sampled
    assert "(empty)" in sampled


# ---- CollapseWatch -----------------------------------------------------------------------------------
def test_a_second_run_of_a_callback_is_not_judged_by_the_first(tmp_path):
    watch = CollapseWatch()
    fit(tmp_path / "a", [watch])
    watch.load_state_dict(watch.state_dict() | {"first": {"fwm": 2.0}})
    fit(tmp_path / "b", [watch])
    assert watch.state_dict()["first"]["fwm"] <= 1
    states = HeldOutStates()
    states._rows = [("of another run", ["1"])]
    states.setup(SimpleNamespace(current_epoch=3), None, "fit")
    states.setup(SimpleNamespace(current_epoch=0), None, "validate")
    assert states._rows
    states.setup(SimpleNamespace(current_epoch=0), None, "fit")
    assert not states._rows


def test_figures_of_the_actions(tmp_path):
    found = fit(tmp_path, [CollapseWatch()])
    # idm: 2 batches x 4 pairs, of which the first of 3 actions counts; 2 are different
    assert scalars(found, "idm/unique_actions")[0][1] == pytest.approx(2 / 8)
    assert scalars(found, "idm/effective_actions")[0][1] == pytest.approx(2.0)
    lengths = len("turn left"), len("pick up the red key")
    assert scalars(found, "fwm/action_length")[0][1] == pytest.approx(sum(lengths) / 2)
    assert not any("warmup" in tag for tag in found.Tags()["scalars"])


def test_counterfactual_actions_do_not_count(tmp_path):
    """The IDM has not sampled them; its own in Phase II count on the same pairs."""
    data = Data(rows=64, counterfactual_share=0.5)
    practised = sum(row.counterfactual is not None for row in data.with_counterfactuals(0))
    seen = []

    class Watch(CollapseWatch):
        def on_train_epoch_end(self, trainer, pl_module):
            seen.append(list(self._seen))
            super().on_train_epoch_end(trainer, pl_module)

    found = fit(tmp_path / "half", [Watch()], data=data)
    assert [sum(length < 0 for _, length in rows) for rows in seen] == [0, practised, 0]
    assert [len(rows) for rows in seen] == [0, 64, 64]
    assert scalars(found, "fwm/unique_actions")[0][1] == pytest.approx(2 / (64 - practised))
    assert scalars(found, "idm/unique_actions")[0][1] == pytest.approx(2 / 64)
    found = fit(tmp_path / "all", [CollapseWatch()], data=Data(counterfactual_share=1.0))
    assert not [tag for tag in found.Tags()["scalars"] if tag in ("fwm/unique_actions", "fwm/action_length")]


def test_a_phase_that_is_cut_keeps_its_actions_for_the_rest(tmp_path):
    watch = CollapseWatch()
    found = fit(tmp_path, [watch], max_epochs=-1, max_steps=3)  # one step of Phase I
    assert not [tag for tag in found.Tags()["scalars"] if "unique_actions" in tag]
    assert len(watch._seen) == 4
    assert watch._first == {}


class Collapse(Callback):
    def on_train_epoch_start(self, trainer, pl_module):
        if pl_module.phase.iteration == 1:
            pl_module.actions = ["go"]


def test_a_warning_when_the_share_falls(tmp_path):
    with pytest.warns(UserWarning, match=r"phase 'fwm' of epoch 3 12\.5% .* 25\.0% in the first iteration"):
        fit(tmp_path, [CollapseWatch(threshold=0.6), Collapse()], max_epochs=4)


def test_the_first_share_survives_a_checkpoint():
    first = CollapseWatch()
    first._first = {"fwm": 0.5}
    second = CollapseWatch()
    second.load_state_dict(first.state_dict())
    assert second._first == {"fwm": 0.5}
    for damaged in ({"first": {"fwm": "x"}}, {"first": {}, "seen": "x"}, {"first": []}, {}):
        with pytest.raises(ValueError, match=r"CollapseWatch in the checkpoint cannot be restored \(.+it is damaged"):
            second.load_state_dict(damaged)
    with pytest.raises(ValueError, match="threshold"):
        CollapseWatch(threshold=2)


# ---- AdapterExport -----------------------------------------------------------------------------------
def test_adapters_are_saved_when_something_is_complete(tmp_path):
    fit(tmp_path, [AdapterExport()], max_epochs=5)
    folder = tmp_path / "run" / "adapters"
    labels = ["last", "sft", "swirl-iteration-1", "swirl-iteration-2"]
    assert sorted(path.name for path in folder.iterdir()) == labels
    assert all((folder / label / "fwm").read_text() == "weights" for label in labels)


def test_an_earlier_export_is_replaced(tmp_path):
    stale = tmp_path / "adapters" / "last" / "stale"
    stale.parent.mkdir(parents=True)
    stale.touch()
    trainer(tmp_path, [AdapterExport()], logger=False, max_epochs=1).fit(Model(), Data())
    assert sorted(path.name for path in stale.parent.iterdir()) == ["fwm"]


def test_a_logger_without_a_folder_leaves_the_run_its_own(tmp_path):
    """As MLFlowLogger, whose runs are kept by a server: no adapters were saved, and nothing said so."""

    class Remote(DummyLogger):
        save_dir = None

    remote = quiet_trainer(
        tmp_path, AdapterExport(), logger=Remote(), max_epochs=1, reload_dataloaders_every_n_epochs=1
    )
    remote.fit(Model(), Data())
    assert (tmp_path / "adapters" / "last" / "fwm").is_file()


def test_no_export_in_a_development_run(tmp_path):
    trainer(tmp_path, [AdapterExport()], fast_dev_run=True).fit(Model(), Data())
    assert not (tmp_path / "adapters").exists()


def test_no_export_where_nothing_was_trained(tmp_path):
    with pytest.warns(UserWarning, match="not one step was trained, so no adapters are saved"):
        trainer(tmp_path, [AdapterExport()], max_epochs=1, limit_train_batches=0).fit(Model(), Data())
    assert not (tmp_path / "adapters").exists()


# ---- Throughput --------------------------------------------------------------------------------------
def test_speed_and_memory(tmp_path, monkeypatch):
    clock = iter(range(10_000))
    monkeypatch.setattr("swirl_lightning.callbacks.throughput.time.monotonic", lambda: float(next(clock)))
    found = fit(tmp_path, [Throughput(every_n_steps=2)], max_epochs=1, data=Data(rows=32))
    # Starting, reading and restarting the clock tick once each: two steps in one "second". The last
    # interval is followed by validation, which costs nothing.
    assert scalars(found, "throughput/seconds_per_step") == [(step, 0.5) for step in (2, 4, 6, 8)]
    assert scalars(found, "throughput/tokens_per_second")[0] == (2, 20.0)
    assert 0.01 < scalars(found, "throughput/peak_memory_gib")[0][1] < 1000


def test_lightnings_interval_may_be_zero(tmp_path):
    data = Data(rows=32)  # 8 batches, 4 steps
    found = fit(tmp_path, [Throughput()], max_epochs=1, data=data, log_every_n_steps=0, accumulate_grad_batches=2)
    assert [step for step, _ in scalars(found, "throughput/seconds_per_step")] == [1, 2, 3, 4]


def test_validation_does_not_count(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("swirl_lightning.callbacks.throughput.time.monotonic", lambda: now[0])
    callback = Throughput()
    callback._time = 0.0
    now[0] = 5.0
    callback.on_validation_start(None, None)
    now[0] = 25.0
    callback.on_validation_end(None, None)
    assert callback._time == 20.0


def test_speed_needs_a_positive_interval(tmp_path):
    with pytest.raises(ValueError, match="every_n_steps"):
        Throughput(every_n_steps=0)
    trainer(tmp_path, [Throughput()], logger=False, max_epochs=1).fit(Model(), Data())


# ---- HyperparameterText ------------------------------------------------------------------------------
def test_the_saved_configuration_is_shown(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("seed_everything: 7\n")
    found = fit(tmp_path, [HyperparameterText()], max_epochs=1)
    assert texts(found, "hyperparameters") == {0: "```yaml\nseed_everything: 7\n```"}


def test_hyperparameters_where_no_configuration_was_saved(tmp_path):
    fit(tmp_path, [HyperparameterText()], max_epochs=1)
    text = texts(events(tmp_path), "hyperparameters")[0]
    assert "hparam: 3" in text


# ---- two processes -----------------------------------------------------------------------------------
def test_two_processes(tmp_path):
    """All callbacks at once: no rank waits for another, figures cover both.

    Five rows to validate here and four there would make unequal numbers of batches if nobody minded.
    """
    rows = 9
    done = run_module("support.callbacks_ddp", tmp_path, rows, ranks=2)
    assert done.returncode == 0, done.stderr
    found = events(tmp_path)
    assert scalars(found, "idm/unique_actions")[0][1] == pytest.approx(2 / 8)
    assert (tmp_path / "run" / "adapters" / "last" / "fwm").exists()
    seen = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    per_epoch = sorted(seen[0][: len(seen[0]) // 3] + seen[1][: len(seen[1]) // 3])
    assert per_epoch == sorted(f"validation-{i}" for i in range(rows))
