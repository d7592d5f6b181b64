"""Resuming: from the end of a run, from its middle, and with settings that have changed in between."""

from __future__ import annotations

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

from support.processes import run_module
from support.swirl import build, equal, snapshot, trainer
from support.world import Digits
from swirl_lightning import AdapterConfig, GRPOConfig
from swirl_lightning.callbacks import CollapseWatch, PhaseSwitch


class Rates(Callback):
    """The learning rate of every step, with its epoch."""

    def __init__(self):
        self.seen = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.seen.append((trainer.current_epoch, trainer.optimizers[0].param_groups[0]["lr"]))


def fit(path, folder, switch, resume=None, limit_val_batches=0, **kwargs):
    """Two steps an epoch; a checkpoint after each, and at the end of each epoch."""
    module, rates = build(path, **kwargs), Rates()
    saves = [
        ModelCheckpoint(folder, filename="{step}", save_top_k=-1, every_n_train_steps=1),
        ModelCheckpoint(folder, save_last=True, enable_version_counter=False, save_top_k=0),
    ]
    run = trainer(folder, switch, [rates, *saves], limit_val_batches=limit_val_batches)
    run.fit(module, Digits(size=16, batch_size=8), ckpt_path=resume)
    return module, rates.seen, run


@pytest.mark.parametrize("limit_val_batches", [0, 1])
def test_a_finished_run_has_nothing_left_to_do(gemma_path, tmp_path, limit_val_batches):
    switch, last = {"warmup_epochs": 1, "iterations": 1}, tmp_path / "last.ckpt"
    module, seen, run = fit(gemma_path, tmp_path, PhaseSwitch(**switch), limit_val_batches=limit_val_batches)
    assert [epoch for epoch, _ in seen] == [0, 0, 1, 1, 2, 2]
    again, seen, run = fit(gemma_path, tmp_path, PhaseSwitch(**switch), last, limit_val_batches)
    assert not seen
    assert run.global_step == 6
    assert equal(snapshot(again), snapshot(module))
    longer = PhaseSwitch(warmup_epochs=1, iterations=2)
    _, seen, _ = fit(gemma_path, tmp_path, longer, last, limit_val_batches)
    assert [epoch for epoch, _ in seen] == [3, 3, 4, 4]


def test_more_warm_up_goes_on_with_the_longer_curve(gemma_path, tmp_path):
    fit(gemma_path, tmp_path, PhaseSwitch(warmup_epochs=2, iterations=0))
    _, alone, _ = fit(gemma_path, tmp_path / "alone", PhaseSwitch(warmup_epochs=4, iterations=0))
    _, seen, _ = fit(gemma_path, tmp_path, PhaseSwitch(warmup_epochs=4, iterations=0), tmp_path / "last.ckpt")
    assert seen == alone[4:]
    assert all(rate > 0 for _, rate in seen)
    for step in (1, 3):  # within an epoch
        longer, folder = PhaseSwitch(warmup_epochs=4, iterations=0), tmp_path / f"on{step}"
        _, seen, _ = fit(gemma_path, folder, longer, tmp_path / f"step={step}.ckpt")
        assert seen == alone[step:]


def test_a_warm_up_that_early_stopping_ended_is_gone_on_from(gemma_path, tmp_path):
    stop = EarlyStopping("val/fwm/log_prob", mode="max", patience=1, min_delta=1e9)
    saves = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    run = trainer(tmp_path, PhaseSwitch(warmup_epochs=50, iterations=0), [stop, saves], limit_val_batches=1)
    run.fit(build(gemma_path), Digits(size=16, batch_size=8))
    assert run.current_epoch == 2
    switch = PhaseSwitch(warmup_epochs=2, iterations=1)
    _, seen, run = fit(gemma_path, tmp_path / "on", switch, tmp_path / "epoch=1.ckpt")
    assert [epoch for epoch, _ in seen] == [2, 2, 3, 3]
    assert switch.schedule.at(2).name == "fwm"


def test_a_schedule_that_renames_what_was_done_is_refused(gemma_path, tmp_path):
    fit(gemma_path, tmp_path, PhaseSwitch(warmup_epochs=2, iterations=0))
    with pytest.raises(ValueError, match=r"epochs were \['warmup', 'warmup'\].*phase_switch.warmup_epochs \(there 2\)"):
        fit(gemma_path, tmp_path, PhaseSwitch(warmup_epochs=0, iterations=1), tmp_path / "last.ckpt")
    run = trainer(tmp_path, PhaseSwitch(warmup_epochs=2, iterations=0), max_epochs=1)
    with pytest.raises(ValueError, match=r"has done 2 epochs, and trainer\.max_epochs ends it after 1: raise it"):
        run.fit(build(gemma_path), Digits(size=16, batch_size=8), ckpt_path=tmp_path / "last.ckpt")
    module = build(gemma_path)  # a test trains nothing, so its schedule does not matter
    trainer(tmp_path, PhaseSwitch(0)).test(module, Digits(), ckpt_path=tmp_path / "last.ckpt", verbose=False)


def test_adapters_of_another_strength_are_refused(gemma_path, tmp_path):
    switch = {"warmup_epochs": 1, "iterations": 0}
    fit(gemma_path, tmp_path, PhaseSwitch(**switch), lora=AdapterConfig(r=4, alpha=16))
    with pytest.raises(ValueError, match=r"set model\.lora\.alpha to 16"):
        trainer(tmp_path).test(
            build(gemma_path, lora=AdapterConfig(r=4, alpha=32)), Digits(), ckpt_path=tmp_path / "last.ckpt"
        )


class Uneven(Digits):
    """A warm-up shorter than the phases: a batch counter that is carried over would show."""

    def load_split(self, split):
        return super().load_split(split)[: {"warmup": 16, "validation": 8}.get(split)]


class Seen(Callback):
    """Events of a run, in order: epochs begun and ended, batches with their learning rate, validations."""

    def __init__(self):
        self.events = []

    def on_train_epoch_start(self, trainer, pl_module):
        self.events.append(("begin", trainer.current_epoch))

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        lr = trainer.optimizers[0].param_groups[0]["lr"]
        self.events.append(("batch", trainer.current_epoch, batch_idx, lr, trainer.global_step))

    def on_validation_start(self, trainer, pl_module):
        self.events.append(("validate", trainer.current_epoch))

    def on_validation_end(self, trainer, pl_module):
        self.events.append({k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("val/")})

    def on_train_epoch_end(self, trainer, pl_module):
        prefix = f"{pl_module.phase.name}/"
        figures = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith(prefix) and "actions" in k}
        self.events.append(("end", trainer.current_epoch, figures))


class SaveInValidation(Callback):
    """As SIGTERM does."""

    def __init__(self, folder):
        self.folder = folder

    def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0):
        trainer.save_checkpoint(self.folder / f"in-validation-{trainer.current_epoch}-{batch_idx}.ckpt")


REPLAYS = {"grpo": GRPOConfig(group_size=4, num_iterations=2)}


@pytest.mark.parametrize(
    ("validate", "accumulate", "limits", "settings"),
    [
        (2, 1, {}, {}),
        (0, 1, {}, {"shared_weights": True}),
        (2, 2, {}, REPLAYS),
        (0, 1, {"limit_train_batches": 2}, {}),
        (0, 1, {"limit_train_batches": 2, "max_steps": 7}, {}),
    ],
    ids=["plain-validation", "shared", "replays-validation", "limited", "limited-steps"],
)
def test_a_run_goes_on_from_every_checkpoint_as_if_never_stopped(
    gemma_path, tmp_path, validate, accumulate, limits, settings
):
    """``limits`` leave the loader batches at the end of a phase, and none at the end of the warm-up."""

    def run(folder, resume=None):
        module, seen = build(gemma_path, **settings), Seen()
        every, best = {"save_top_k": -1}, {"save_top_k": -1, "mode": "max"}
        saves = [
            ModelCheckpoint(folder, "{step}", every_n_train_steps=1, **every),
            ModelCheckpoint(folder, "v{step}", save_on_train_epoch_end=False, monitor="step", **best),
            ModelCheckpoint(folder, "e{step}", save_on_train_epoch_end=True, monitor="epoch", **best),
        ]
        options = {"limit_val_batches": validate, "num_sanity_val_steps": 0, "accumulate_grad_batches": accumulate}
        callbacks = [CollapseWatch(), seen, SaveInValidation(folder), *saves]
        fit = trainer(folder, PhaseSwitch(1, iterations=1), callbacks, **options, **limits)
        fit.fit(module, Uneven(size=16 if validate else 24, batch_size=8, eval_batch_size=4), ckpt_path=resume)
        return snapshot(module), seen.events, fit.global_step

    weights, events, steps = run(tmp_path / "alone")
    checkpoints = sorted((tmp_path / "alone").glob("*.ckpt"))
    # of steps, ends of epochs, ends of validations, and batches within these
    assert len(checkpoints) == steps + 3 + (3 + 6 if validate else 0)
    for checkpoint in checkpoints[bool(settings) :: 4 if validate else 3]:  # other cases take those between
        resumed, rest, total = run(tmp_path / checkpoint.stem, checkpoint)
        assert equal(resumed, weights), checkpoint.name
        assert total == steps, checkpoint.name
        assert rest == events[len(events) - len(rest) :], checkpoint.name


@pytest.mark.parametrize("after_the_fit", [False, True])
def test_with_max_steps_it_goes_on_from_an_epochs_end_and_once_more(gemma_path, tmp_path, after_the_fit):
    """The next epoch is counted and begun as any other, so that checkpoints within it serve as well."""

    def run(folder, resume=None, max_steps=100):
        module, seen = build(gemma_path), Seen()
        every = {"save_top_k": -1}
        saves = [
            ModelCheckpoint(folder, "{step}", every_n_train_steps=1, **every),
            ModelCheckpoint(folder, "e{step}", save_on_train_epoch_end=True, monitor="epoch", mode="max", **every),
        ]
        fit = trainer(folder, PhaseSwitch(1, iterations=1), [seen, *saves], max_steps=max_steps)
        fit.fit(module, Uneven(size=24, batch_size=8), ckpt_path=resume)
        if max_steps == 2:
            fit.save_checkpoint(folder / "after.ckpt")
        return snapshot(module), seen.events

    weights, events = run(tmp_path / "alone")
    if after_the_fit:
        run(tmp_path / "short", max_steps=2)
    end = tmp_path / "short" / "after.ckpt" if after_the_fit else tmp_path / "alone" / "estep=2.ckpt"
    once, rest = run(tmp_path / "once", end)
    assert rest == events[events.index(("begin", 1)) :]
    assert equal(once, weights)
    twice, rest = run(tmp_path / "twice", tmp_path / "once" / "step=4.ckpt")
    assert rest == events[-len(rest) :]
    assert equal(twice, weights)


class StopAt(Callback):
    """Stops the training after a step, as ``max_time`` does."""

    def __init__(self, step):
        self.step = step

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        trainer.should_stop = trainer.global_step == self.step


SHARED = REPLAYS | {"shared_weights": True}


@pytest.mark.parametrize(
    ("how", "step", "settings"),
    [
        ("saved after the fit", 2, {}),
        ("should_stop", 4, REPLAYS),
        ("max_steps", 12, SHARED),
    ],
)
def test_a_run_that_was_told_to_stop_goes_on_within_its_phase(gemma_path, tmp_path, how, step, settings):
    """Lightning ends the epoch in which it stops, and would go on with the next phase."""

    def run(folder, resume=None, stop=False):
        module = build(gemma_path, **settings)
        saves = [ModelCheckpoint(folder, save_last=True, save_top_k=0, enable_version_counter=False)]
        saves += [StopAt(step)] if stop and how == "should_stop" else []
        limit = step if stop and how != "should_stop" else -1
        fit = trainer(folder, PhaseSwitch(1, iterations=1), saves, max_steps=limit, max_epochs=-1)
        fit.fit(module, Digits(size=24, batch_size=8), ckpt_path=resume)
        if stop and how == "saved after the fit":
            fit.save_checkpoint(folder / "last.ckpt")
        return snapshot(module), fit.global_step, module.label

    weights, steps, label = run(tmp_path / "alone")
    _, at, unfinished = run(tmp_path, stop=True)
    assert (at, unfinished.rsplit(" ", 1)[1]) == (step, "unfinished")
    resumed, total, after = run(tmp_path, tmp_path / "last.ckpt")
    assert (total, after) == (steps, label)
    assert equal(resumed, weights)


def test_a_phase_begins_though_its_epoch_was_entered_without_a_hook(gemma_path, tmp_path, monkeypatch):
    """Lightning enters the epoch of such a checkpoint in this way unless ``stop_after_last_batch`` mends it."""
    module, seen, _ = fit(gemma_path, tmp_path, PhaseSwitch(1, iterations=1))
    monkeypatch.setattr("swirl_lightning.callbacks.phase_switch.stop_after_last_batch", lambda checkpoint: None)
    again, rest, _ = fit(gemma_path, tmp_path / "2", PhaseSwitch(1, iterations=1), tmp_path / "step=2.ckpt")
    assert rest == seen[2:]
    assert equal(snapshot(again), snapshot(module))


def test_the_optimisers_options_are_those_of_the_configuration(gemma_path, tmp_path):
    """Those of a checkpoint would undo what a user changes, and a planted ``maximize`` would train backwards."""

    def groups(decay, folder, resume=None):
        options = {"optimizer": lambda p: torch.optim.AdamW(p, weight_decay=decay)}
        module, rates, run = fit(gemma_path, folder, PhaseSwitch(1, iterations=0), resume, **options)
        return module, rates, run.optimizers[0]

    groups(0.0, tmp_path)
    state = torch.load(tmp_path / "step=1.ckpt", weights_only=True)
    for group in state["optimizer_states"][0]["param_groups"]:
        group |= {"maximize": True, "betas": (2.0, 3.0)}
    torch.save(state, tmp_path / "planted.ckpt")
    planted, rates, optimizer = groups(0.5, tmp_path / "planted", tmp_path / "planted.ckpt")
    assert [(g["weight_decay"], g["maximize"], g["betas"]) for g in optimizer.param_groups] == [
        (0.5, False, (0.9, 0.999))
    ] * 2
    own, same_rates, _ = groups(0.5, tmp_path / "own", tmp_path / "step=1.ckpt")
    assert equal(snapshot(planted), snapshot(own))
    assert rates == same_rates
    whole, *_ = groups(0.0, tmp_path / "whole", tmp_path / "step=1.ckpt")
    assert not equal(snapshot(whole), snapshot(own))


def test_the_epoch_a_checkpoint_stands_in_keeps_its_phase(gemma_path, tmp_path):
    fit(gemma_path, tmp_path, PhaseSwitch(warmup_epochs=2, iterations=0))  # step=3 stands in the second epoch
    with pytest.raises(ValueError, match=r"epochs were \['warmup', 'warmup'\].* been \['warmup', 'fwm'\]"):
        fit(gemma_path, tmp_path, PhaseSwitch(warmup_epochs=1, iterations=1), tmp_path / "step=3.ckpt")
    with pytest.raises(ValueError, match=r"epochs were \['warmup', 'warmup'\]"):
        fit(gemma_path, tmp_path, PhaseSwitch(warmup_epochs=1, iterations=1), tmp_path / "last.ckpt")
    fit(gemma_path, tmp_path / "rl", PhaseSwitch(0, ["fwm", "idm"], 1))
    with pytest.raises(ValueError, match=r"epochs were \['fwm'\].* been \['idm'\]"):
        fit(gemma_path, tmp_path / "rl", PhaseSwitch(0, ["idm", "fwm"], 1), tmp_path / "rl" / "step=1.ckpt")


def test_rollouts_in_use_survive(gemma_path, tmp_path):
    """num_iterations 2, resumed between the two updates of a batch."""
    settings = {"grpo": GRPOConfig(group_size=4, num_iterations=2)}
    module, *_ = fit(gemma_path, tmp_path, PhaseSwitch(0, ["fwm"], 1), **settings)
    again, seen, _ = fit(gemma_path, tmp_path / "2", PhaseSwitch(0, ["fwm"], 1), tmp_path / "step=1.ckpt", **settings)
    assert len(seen) == 3
    assert equal(snapshot(again), snapshot(module))


def test_rollouts_in_use_survive_on_every_rank(gemma_path, tmp_path):
    for name in ("alone", "resumed"):
        done = run_module("support.ddp_resume", gemma_path, tmp_path, name, ranks=2)
        assert done.returncode == 0, done.stderr[-3000:]
    for rank in (0, 1):
        alone, resumed = (
            torch.load(tmp_path / f"{name}-{rank}.pt", weights_only=True) for name in ("alone", "resumed")
        )
        assert equal(alone, resumed)
    module = build(gemma_path, grpo=GRPOConfig(group_size=4, num_iterations=2))
    with pytest.raises(ValueError, match="rollouts of 2 devices"):
        trainer(tmp_path, PhaseSwitch(0, ["fwm"], 1)).fit(module, Digits(), ckpt_path=tmp_path / "step=1.ckpt")
    trainer(tmp_path).test(module, Digits(), ckpt_path=tmp_path / "step=1.ckpt", verbose=False)
