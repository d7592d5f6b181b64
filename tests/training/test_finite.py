"""A reward, loss or gradient that is NaN or infinite stops the run before it reaches a weight.

A run has 4 steps an epoch (warm-up, Phase I, Phase II) and writes a checkpoint after every one of them.
"""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from support.cli import here, longer_config
from support.processes import swirl
from support.swirl import build, trainer
from support.world import Digits
from swirl_lightning.callbacks import PhaseSwitch
from swirl_lightning.training.losses import sft_log_probs

EXPORT = "--trainer.callbacks+=swirl_lightning.callbacks.AdapterExport"


def unvalidated(folder, base, **changes):
    """Write the configuration of such a run."""
    return longer_config(folder, base, **{"trainer/limit_val_batches": 0} | changes)


def broken(callback):
    """Options of the command line that add a callback beside those of the config."""
    options = ["--trainer.callbacks+=support.world.BrokenModel"]
    return options + [f"--trainer.callbacks.{key}={value}" for key, value in callback.items()]


def reward(**arguments):
    return {"model/init_args/reward": {"class_path": "support.world.BrokenReward", "init_args": arguments}}


def adapters(folder):
    """The last checkpoint's tensors, and where it stands."""
    checkpoint = torch.load(folder / "runs" / "r" / "checkpoints" / "last.ckpt", weights_only=True)
    return checkpoint["state_dict"], checkpoint["global_step"]


def assert_good_until(folder, step):
    """Nothing was saved after ``step``, and all that was saved is finite."""
    state, at = adapters(folder)
    assert at == step
    assert all(tensor.isfinite().all() for tensor in state.values())
    saved = folder / "runs" / "r"
    assert len(list((saved / "checkpoints").glob("*.ckpt"))) == step + 1
    exported = {path: load_file(path) for path in (saved / "adapters").rglob("*.safetensors")}
    assert {path.relative_to(saved / "adapters").parts[0] for path in exported} == ({"sft"} if step >= 4 else set())
    assert all(tensor.isfinite().all() for state in exported.values() for tensor in state.values())


def stopped(capsys, *args):
    """The message with which a command ends, in this process."""
    with pytest.raises(SystemExit) as end:
        here(*args)
    capsys.readouterr()
    assert isinstance(end.value.code, str)  # which Python makes 1, and prints
    return end.value.code


@pytest.mark.parametrize(
    ("value", "call", "phase", "step"),
    [("nan", 2, "fwm", 6), ("-inf", 7, "idm", 11)],
)
def test_a_broken_reward_stops_the_run_and_what_was_saved_goes_on(
    tmp_path, gemma_path, capsys, value, call, phase, step
):
    path = unvalidated(tmp_path, gemma_path, **reward(call=call, value=float(value)))
    told = stopped(capsys, "fit", "-c", path, EXPORT)
    assert f"the reward is not finite in phase '{phase}'" in told
    assert f"optimiser step {step}, transitions 'state_only-" in told
    assert_good_until(tmp_path, step - 1)
    if value == "nan":
        here("fit", "-c", unvalidated(tmp_path, gemma_path), EXPORT, "--ckpt_path", "last")
        state, at = adapters(tmp_path)
        assert at == 12
        assert all(tensor.isfinite().all() for tensor in state.values())


@pytest.mark.parametrize(
    ("what", "step", "words"),
    [
        ("loss", 2, ["the loss is not finite in phase 'warmup'", "optimiser step 3, records 'warmup-"]),
        ("gradient", 2, ["the gradient of", "lora_B.fwm", "in phase 'warmup'", "optimiser step 3, records 'warmup-"]),
        ("gradient", 5, ["the gradient of", "lora_B.fwm", "in phase 'fwm'", "optimiser step 6, records 'state_only-"]),
    ],
)
def test_a_broken_loss_or_gradient_stops_the_run(tmp_path, gemma_path, capsys, what, step, words):
    path = unvalidated(tmp_path, gemma_path)
    told = stopped(capsys, "fit", "-c", path, EXPORT, *broken({"step": step, "what": what}))
    for word in words:
        assert word in told
    assert_good_until(tmp_path, step)


@pytest.mark.parametrize("step", [2, 5])
def test_weights_that_the_optimiser_breaks_are_in_no_checkpoint_and_no_export(tmp_path, gemma_path, capsys, step):
    path = unvalidated(tmp_path, gemma_path)
    told = stopped(capsys, "fit", "-c", path, EXPORT, *broken({"step": step, "what": "moments"}))
    phase = "warmup" if step < 4 else "fwm"
    assert f"the adapter is not finite in phase '{phase}'" in told
    assert f"optimiser step {step + 1}, records '" in told
    assert "model.optimizer" in told
    assert_good_until(tmp_path, step)


def test_an_optimiser_whose_eps_is_0_ends_in_words(tmp_path, gemma_path, capsys):
    """Weights without a gradient become 0 / 0, as those of lora_A in the first step."""
    optimizer = {"class_path": "torch.optim.AdamW", "init_args": {"eps": 0.0}}
    path = unvalidated(tmp_path, gemma_path, **{"model/init_args/optimizer": optimizer})
    told = stopped(capsys, "fit", "-c", path, EXPORT)
    assert "the adapter is not finite in phase 'warmup', epoch 0, optimiser step 1, records 'warmup-" in told
    assert not list(tmp_path.rglob("*.ckpt")) + list(tmp_path.rglob("*.safetensors"))


def test_a_model_that_has_diverged_ends_in_words(tmp_path, gemma_path, capsys):
    """Weights are finite and what the model says is NaN, so that no token can be drawn from it."""
    rates = {"warmup": {"lr": 1e-3}, "fwm": {"lr": 1e15, "warmup": 0}}
    path = unvalidated(tmp_path, gemma_path, **{"model/init_args/optim": rates})
    told = stopped(capsys, "fit", "-c", path)
    assert "the loss is not finite in phase 'fwm', epoch 1, optimiser step 6, records 'state_only-" in told
    told = stopped(capsys, "test", "-c", path, "--ckpt_path", "last")
    assert "record 'test-0': the FWM's log-probability is not a number" in told


def test_accumulated_batches_are_all_checked(tmp_path, gemma_path, capsys):
    """The NaN is in the first of two micro-batches; the step is taken after the second."""
    path = unvalidated(tmp_path, gemma_path)
    told = stopped(
        capsys,
        *("fit", "-c", path, "--trainer.accumulate_grad_batches", "2", "--data.init_args.batch_size", "4"),
        *broken({"step": 1, "what": "loss"}),
    )
    assert "optimiser step 2, records 'warmup-" in told
    assert told.count("'warmup-") == 5  # of 8
    assert "and 3 more" in told
    assert adapters(tmp_path)[1] == 1


@pytest.mark.parametrize("phase", ["fwm", "idm", "bootstrap"])
def test_labelled_triples_beside_the_pairs_are_named(tmp_path, gemma_path, monkeypatch, phase):
    def broken(models, x, actions, y, roles, seen=None):
        scored = sft_log_probs(models, x, actions, y, roles, seen)
        if len(actions) == 3:  # the pairs are 4
            scored[roles[0]].values.data[0] = float("nan")
        return scored

    monkeypatch.setattr("swirl_lightning.module.sft_log_probs", broken)
    run, data = trainer(tmp_path, PhaseSwitch(0, [phase], 1)), Digits(size=8, batch_size=4, labelled_per_batch=3)
    with pytest.raises(FloatingPointError, match=r"the loss is not .* records ('warmup-\d'(, )?){3}\. This step"):
        run.fit(build(gemma_path), data)


@pytest.mark.parametrize(
    ("changes", "options", "words", "step"),
    [
        (reward(call=2, value=float("nan"), rank=1), [], ["the reward", "phase 'fwm'", "'state_only-"], 5),
        ({}, broken({"step": 2, "what": "loss", "rank": 1}), ["the loss", "phase 'warmup'", "'warmup-"], 2),
    ],
    ids=["reward", "loss"],
)
def test_both_ranks_stop_where_one_is_broken(tmp_path, gemma_path, changes, options, words, step):
    changes |= {
        "trainer/devices": 2,
        "trainer/strategy": "ddp",
        "data/init_args/batch_size": 4,
        "model/init_args/backbone/init_args/quantization": None,
    }
    done = swirl(
        "fit", "-c", unvalidated(tmp_path, gemma_path, **changes), *options, ranks=2
    )  # its time limit ends a hang
    assert done.returncode != 0
    assert done.stderr.count("error: ") == 2
    for word in words:
        assert word in done.stderr
    state, at = adapters(tmp_path)
    assert at == step
    assert all(tensor.isfinite().all() for tensor in state.values())
