"""Resuming within an optimiser step: its gradients, its rollouts and its metrics are those of a run never stopped."""

from __future__ import annotations

import torch
from lightning.pytorch import Callback

from support.swirl import SGD, build, equal, randomize, snapshot, trainer
from support.world import Digits
from swirl_lightning import GRPOConfig
from swirl_lightning.callbacks import PhaseSwitch

REPLAYS = {"grpo": GRPOConfig(group_size=4, num_iterations=2)}


class SaveEachBatch(Callback):
    """As ``train_time_interval`` and SIGTERM do, within a window of accumulated gradients, too."""

    def __init__(self, folder):
        self.folder = folder

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            trainer.save_checkpoint(self.folder / f"{trainer.current_epoch}-{batch_idx}.ckpt")


class Logged(Callback):
    """Metrics of every optimiser step."""

    def __init__(self):
        self.steps, self._taken = {}, None

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self._taken = trainer.global_step

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step > self._taken:
            found = trainer.callback_metrics.items()
            phase = f"{pl_module.phase.name}/"
            self.steps[trainer.global_step] = {key: float(value) for key, value in found if key.startswith(phase)}


def test_a_run_goes_on_within_an_accumulation_window(gemma_path, tmp_path):
    def run(folder, resume=None):
        module, logged = build(gemma_path, **REPLAYS), Logged()
        callbacks = [SaveEachBatch(folder), logged]
        fit = trainer(folder, PhaseSwitch(1, iterations=1), callbacks, accumulate_grad_batches=3)
        fit.fit(module, Digits(size=24, batch_size=8, labelled_per_batch=2), ckpt_path=resume)
        return snapshot(module), fit.global_step, logged.steps

    whole = run(tmp_path / "alone")
    checkpoints = sorted((tmp_path / "alone").glob("*.ckpt"))
    assert [path.stem for path in checkpoints][:6] == ["0-0", "0-1", "1-0", "1-1", "1-3", "1-4"]
    for checkpoint in checkpoints[::3]:  # of each phase, of first uses and of a replay, after one batch and after two
        weights, steps, logged = run(tmp_path / checkpoint.stem, checkpoint)
        assert equal(weights, whole[0]), checkpoint.name
        assert steps == whole[1]
        assert logged
        for step, metrics in logged.items():
            # within a replay, what its rollouts say was logged before the checkpoint
            assert metrics == {name: whole[2][step][name] for name in metrics}, checkpoint.name
            assert len(metrics) > 1


def test_a_window_may_end_up_longer_than_it_began(gemma_path, tmp_path):
    def run(accumulated, resume=None):
        module, saves = build(gemma_path, optimizer=SGD), [] if resume else [SaveEachBatch(tmp_path / str(accumulated))]
        fit = trainer(tmp_path, PhaseSwitch(1, iterations=0), saves, accumulate_grad_batches=accumulated)
        fit.fit(module, Digits(size=24, batch_size=8), ckpt_path=resume)
        return snapshot(module)

    run(2)
    torch.testing.assert_close(run(3, tmp_path / "2" / "0-0.ckpt"), run(3))


class StopAfterOneBatch(Callback):
    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        trainer.should_stop = True


def test_a_fit_after_one_that_stopped_within_a_step_begins_it_anew(gemma_path, tmp_path):
    def fit(module, *callbacks):
        run = trainer(tmp_path, PhaseSwitch(1, iterations=0), callbacks, accumulate_grad_batches=3)
        run.fit(module, Digits(size=24, batch_size=8))
        return snapshot(module), {name: float(value) for name, value in run.callback_metrics.items()}

    stopped = build(gemma_path, optimizer=SGD)  # Adam's first step hides the size of a gradient
    fit(stopped, StopAfterOneBatch())
    weights, metrics = fit(stopped)
    expected, found = fit(build(gemma_path, optimizer=SGD))
    assert equal(weights, expected)
    assert metrics == found


class Windows(Callback):
    """The batches that each one brings along, and whose rollouts are then drawn."""

    def __init__(self):
        self.seen = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.seen.append([brought.index for brought in batch.window])


def test_a_fit_that_stopped_within_a_step_and_was_saved_rolls_it_out_no_second_time(gemma_path, tmp_path):
    def run(resume=None, *callbacks):
        module = build(gemma_path, optimizer=SGD, grpo=GRPOConfig(group_size=4, advantage_scale="batch"))
        randomize(module)
        windows, switch = Windows(), PhaseSwitch(0, ["fwm"], iterations=1)
        fit = trainer(tmp_path, switch, [windows, *callbacks], accumulate_grad_batches=3)
        fit.fit(module, Digits(size=24, batch_size=8), ckpt_path=resume)
        return snapshot(module), windows.seen, fit

    weights, seen, _ = run()
    _, begun, stopped = run(None, StopAfterOneBatch())
    stopped.save_checkpoint(tmp_path / "after.ckpt")  # when the epoch that was cut short counts as over
    again, rest, _ = run(tmp_path / "after.ckpt")
    assert [*begun, *rest] == seen == [[0, 1, 2], [], []]
    assert equal(again, weights)
