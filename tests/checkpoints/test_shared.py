"""One adapter learns both directions in the warm-up, as the authors do it, and both models start from it."""

from __future__ import annotations

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint

from support.swirl import build, equal, snapshot, trainer
from support.tiny import text_backbone
from support.world import Digits
from swirl_lightning import SWIRL
from swirl_lightning.callbacks import PhaseSwitch
from swirl_lightning.checkpoints.shared import separate


class Start(Callback):
    """Adapters and optimiser at the first batch, after a phase has begun."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if not hasattr(self, "adapters"):
            self.adapters = snapshot(pl_module)
            (optimizer,) = trainer.optimizers
            self.moments = [
                [optimizer.state[p]["exp_avg"].clone() for p in group["params"] if p in optimizer.state]
                for group in optimizer.param_groups
            ]


def of(tensors, name):
    return {key.removeprefix(f"{name}."): value for key, value in tensors.items() if key.startswith(f"{name}.")}


@pytest.fixture(scope="module")
def shared(gemma_path, tmp_path_factory):
    """Folder of the checkpoints of a warm-up of two epochs, and the module that it ends with."""
    folder = tmp_path_factory.mktemp("shared")
    module = build(gemma_path, shared_weights=True)
    save = ModelCheckpoint(folder, filename="{step}", save_top_k=-1, every_n_train_steps=1)
    trainer(folder, PhaseSwitch(2, iterations=0), [save]).fit(module, Digits(size=16, batch_size=8))
    return folder, module


def test_both_models_start_from_the_one_of_the_warmup(shared, gemma_path, tmp_path):
    folder, module = shared
    world, start = of(snapshot(module), "world"), Start()
    other = build(gemma_path, seed=9)
    run = trainer(tmp_path, PhaseSwitch(2, ["fwm"], 1), [start])
    run.fit(other, Digits(size=16, batch_size=8), ckpt_path=str(folder / "step=4.ckpt"))
    assert all(equal(of(start.adapters, name), world) for name in ("fwm", "idm", "fwm_ref", "idm_ref"))
    assert start.moments == [[], []]  # a phase begins without
    assert equal(of(snapshot(other), "idm"), world)
    assert not equal(of(snapshot(other), "fwm"), world)
    assert (run.global_step, other.label) == (6, "IDM→FWM")


def test_the_warmup_can_go_on_with_both(shared, gemma_path, tmp_path):
    folder, _ = shared
    saved, start = torch.load(folder / "step=2.ckpt", weights_only=True), Start()
    other = build(gemma_path, seed=9)
    run = trainer(tmp_path, PhaseSwitch(2, iterations=0), [start])
    run.fit(other, Digits(size=16, batch_size=8), ckpt_path=str(folder / "step=2.ckpt"))
    moments = [value["exp_avg"] for value in saved["optimizer_states"][0]["state"].values()]
    for group in start.moments:
        assert len(group) == len(moments) > 0
        assert all(torch.equal(one, other) for one, other in zip(group, moments, strict=True))
    ends = snapshot(other)
    assert not equal(of(ends, "fwm"), of(ends, "idm"))  # no tensor is that of both


def test_without_a_trainer_it_predicts_what_shared_weights_predict(shared, gemma_path):
    folder, module = shared
    backbone = text_backbone(gemma_path, max_state_tokens=4, max_action_tokens=5)
    loaded = SWIRL.load_from_checkpoint(folder / "step=4.ckpt", backbone=backbone, sampling=module.sampling)
    assert loaded.predict_action("37", "73", n=3, seed=1) == module.predict_action("37", "73", n=3, seed=1)
    assert loaded.predict_state("37", "swap", n=3, seed=1) == module.predict_state("37", "swap", n=3, seed=1)


def test_within_a_phase_it_is_refused(shared):
    checkpoint = torch.load(shared[0] / "step=3.ckpt", weights_only=True)
    with pytest.raises(ValueError, match=r"where no phase is unfinished, and this one is 'warmup 1 unfinished'"):
        separate(checkpoint)
