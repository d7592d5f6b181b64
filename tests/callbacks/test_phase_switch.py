import pytest
import torch
from lightning.pytorch import Callback

from support.runs import Model
from support.swirl import build, trainer
from support.trainers import quiet_trainer
from support.world import Digits
from swirl_lightning.callbacks import PhaseSwitch
from swirl_lightning.schedule import OptimConfig, PhaseLR, PhaseOptimConfig, PhaseSchedule


def names(schedule, epochs):
    return [schedule.at(epoch).name for epoch in range(epochs)]


def test_the_iterative_schedule():
    schedule = PhaseSchedule(2, ("fwm", "idm"), 2)
    assert names(schedule, 6) == ["warmup", "warmup", "fwm", "idm", "fwm", "idm"]
    assert [schedule.at(e).iteration for e in range(6)] == [0, 0, 0, 0, 1, 1]
    assert [schedule.at(e).starts_iteration for e in range(6)] == [False, False, True, False, True, False]
    assert [schedule.at(e).ends for e in range(6)] == [
        None,
        "SFT",
        None,
        "SWIRL iteration 1",
        None,
        "SWIRL iteration 2",
    ]
    assert schedule.epochs == 6


@pytest.mark.parametrize(("phase", "label"), [("fwm", "IDM→FWM"), ("idm", "FWM→IDM")])
def test_one_phase_once_has_the_papers_name(phase, label):
    schedule = PhaseSchedule(1, (phase,), 1)
    assert names(schedule, 2) == ["warmup", phase]
    assert [schedule.at(epoch).ends for epoch in range(2)] == ["SFT", label]
    for iterative in (PhaseSchedule(0, (phase,), 2), PhaseSchedule(0, (phase,)), PhaseSchedule(0, (phase, phase), 1)):
        assert iterative.at(len(iterative.phases) - 1).ends == "SWIRL iteration 1"


def test_phase_two_first_is_an_iteration_like_any_other():
    schedule = PhaseSchedule(0, ("idm", "fwm"), 1)
    assert names(schedule, 2) == ["idm", "fwm"]
    assert schedule.at(1).ends == "SWIRL iteration 1"


def test_the_endless_schedule():
    endless = PhaseSchedule(1)
    assert endless.epochs is None
    assert names(endless, 6) == ["warmup", "fwm", "idm", "fwm", "idm", "fwm"]
    assert PhaseSchedule(0, ("bootstrap",), 1).at(0).ends == "Bootstrap iteration 1"


@pytest.mark.parametrize(
    ("kwargs", "word"),
    [({"phases": ["fwd"]}, "fwd"), ({"phases": []}, "non-empty"), ({"warmup_epochs": 0, "iterations": 0}, "empty")],
)
def test_bad_schedules_are_named(kwargs, word):
    with pytest.raises(ValueError, match=word):
        PhaseSwitch(**kwargs)


def test_data_that_are_the_same_in_every_phase_are_refused(tmp_path):
    with pytest.raises(TypeError, match="fit on a TransitionDataModule, not NoneType"):
        quiet_trainer(tmp_path, PhaseSwitch()).fit(Model(), [0])


def test_learning_rate_by_hand():
    config = OptimConfig(lr=1.0, warmup=4)
    assert [config.factor(s, 20) for s in range(5)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert config.factor(12, 20) == pytest.approx(0.5)
    assert config.factor(20, 20) == pytest.approx(0.0)
    assert OptimConfig(warmup=0, schedule="constant").factor(19, 20) == 1.0
    assert OptimConfig(warmup=0.5).factor(0, 10) == pytest.approx(1 / 6)


def test_the_curve_begins_anew_with_each_phase_and_survives_a_checkpoint():
    def make():
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=9.0)
        configs = PhaseOptimConfig(OptimConfig(1.0, 0), OptimConfig(0.1, 0), OptimConfig(0.2, 0))
        return optimizer, PhaseLR(optimizer, configs)

    optimizer, curve = make()
    assert optimizer.param_groups[0]["lr"] == 1.0
    for phase, peak in (("warmup", 1.0), ("fwm", 0.1), ("idm", 0.2), ("bootstrap", 0.1)):
        curve.begin(phase, 4)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(peak)
        for _ in range(2):
            optimizer.step()
            curve.step()
        assert optimizer.param_groups[0]["lr"] == pytest.approx(peak / 2)
    other, fresh = make()
    fresh.load_state_dict(curve.state_dict())
    assert other.param_groups[0]["lr"] == pytest.approx(0.05)


@pytest.mark.parametrize(
    "changed", [{"phase_step": -1}, {"phase_total": float("nan")}, {"phase_step": "x"}, {"phase": "x"}]
)
def test_a_place_in_the_curve_that_cannot_be_is_refused(changed):
    curve = PhaseLR(torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=9.0), PhaseOptimConfig())
    with pytest.raises(ValueError, match="place in the learning rate's curve is damaged"):
        curve.load_state_dict(curve.state_dict() | changed)


@pytest.mark.parametrize(("epochs", "told"), [(10**12, "'fwm', 'idm', 'fwm', 'fwm'"), (5, "'fwm', 'idm', 'fwm'")])
def test_a_checkpoint_of_any_number_of_epochs_is_compared_at_once(epochs, told):
    before, now = PhaseSwitch(2, ["fwm", "idm", "fwm"]), PhaseSwitch(2, ["fwm", "idm", "idm"])
    progress = {"epoch_progress": {"current": {"ready": epochs, "processed": epochs}}}
    checkpoint = {"callbacks": {now.state_key: before.state_dict()}, "loops": {"fit_loop": progress}}
    with pytest.raises(ValueError, match=rf"epochs were \['warmup', 'warmup', {told}"):
        now.check_resume(checkpoint)


def test_the_phases_of_a_long_warmup_are_told_at_once():
    assert PhaseSchedule(10**12, ("fwm", "idm")).names() == ["warmup", "fwm", "idm"]
    assert PhaseSchedule(10**12, ("fwm", "idm")).names(max_epochs=3 * 10**11) == ["warmup"]
    assert PhaseSchedule(2, ("fwm",), 1).names(max_epochs=1) == ["warmup"]
    assert PhaseSchedule(0, ("idm", "idm")).names() == ["idm"]


class Moments(Callback):
    """Parameters of which the optimiser keeps something, before each batch."""

    def __init__(self):
        self.seen = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.seen.append((pl_module.phase.name.value, batch_idx, len(trainer.optimizers[0].state)))


def test_each_phase_begins_without_the_moments_of_the_last(gemma_path, tmp_path):
    moments = Moments()
    switch = PhaseSwitch(1, iterations=2)
    quiet_trainer(tmp_path, switch, moments, max_epochs=-1, limit_val_batches=0).fit(
        build(gemma_path), Digits(size=8, batch_size=4)
    )
    assert [phase for phase, place, _ in moments.seen if place == 0] == ["warmup", "fwm", "idm", "fwm", "idm"]
    assert all((count == 0) == (place == 0) for _, place, count in moments.seen)


class Phases(Callback):
    """The phase of each step."""

    def __init__(self):
        self.seen = []

    def on_train_batch_end(self, trainer, pl_module, *args):
        self.seen.append(str(pl_module.phase.name))


def test_a_development_run_has_a_step_of_each_phase(gemma_path, tmp_path):
    """Lightning would end it with the warm-up. The schedule of a run after it is whole again."""
    switch, watch, data = PhaseSwitch(warmup_epochs=4), Phases(), Digits(size=16, batch_size=8)
    trainer(tmp_path, switch, [watch], fast_dev_run=True).fit(build(gemma_path), data)
    assert watch.seen == ["warmup", "fwm", "idm"]
    assert switch.schedule == PhaseSchedule(4)
    run, module = trainer(tmp_path, switch, [watch], max_epochs=6, limit_train_batches=1), build(gemma_path)
    run.validate(module, data, verbose=False)
    run.fit(module, data)
    assert watch.seen[3:] == ["warmup"] * 4 + ["fwm", "idm"]
    watch.seen.clear()
    trainer(tmp_path, PhaseSwitch(2, iterations=0), [watch], fast_dev_run=True).fit(build(gemma_path), data)
    assert watch.seen == ["warmup"]


@pytest.mark.parametrize(
    ("warmups", "done", "left"),
    [
        (2, 1, ["warmup", "fwm", "idm"]),
        (20, 1, ["warmup", "fwm", "idm"]),
        (2, 2, ["fwm", "idm"]),
        (2, 3, ["idm", "fwm"]),
    ],
)
def test_a_development_run_goes_on_from_a_checkpoint(gemma_path, tmp_path, warmups, done, left):
    """It has a step of each phase from there on."""
    data, watch, last = Digits(size=16, batch_size=8), Phases(), tmp_path / "end.ckpt"
    run = trainer(tmp_path, PhaseSwitch(warmups), max_epochs=done)
    run.fit(build(gemma_path), data)
    run.save_checkpoint(last)
    trainer(tmp_path, PhaseSwitch(warmups), [watch], fast_dev_run=True).fit(build(gemma_path), data, ckpt_path=last)
    assert watch.seen == left
