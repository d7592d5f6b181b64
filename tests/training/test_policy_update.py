"""What a policy update compares, and what of it callbacks and the log see."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from lightning.pytorch import Callback

from support.swirl import CONSTANT, SGD, build, randomize, trainer
from support.world import Digits
from swirl_lightning import AdapterConfig, GRPOConfig, OptimConfig, PhaseOptimConfig, SamplingConfig
from swirl_lightning.callbacks import PhaseSwitch
from swirl_lightning.roles import Role

STILL = PhaseOptimConfig(*[OptimConfig(1e-12)] * 3)


class Log(Callback):
    """Keeps scalars of each batch of the phases in which they are logged."""

    def __init__(self, *names):
        self.names, self.found = names, {name: [] for name in names}

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        for name in self.names:
            if name in trainer.callback_metrics and pl_module.phase.name != "bootstrap":
                self.found[name].append(float(trainer.callback_metrics[name]))


def test_the_kl_after_supervision_is_taken_to_what_it_made(gemma_path, tmp_path):
    module, log = build(gemma_path, grpo=GRPOConfig(group_size=4, beta=0.1)), Log("fwm/kl")
    randomize(module)
    switch = PhaseSwitch(0, ["bootstrap", "fwm"], iterations=2)
    trainer(tmp_path, switch, [log]).fit(module, Digits(size=16, batch_size=4))
    begins, later = [log.found["fwm/kl"][step] for step in (0, 4)], log.found["fwm/kl"][3]
    assert max(begins) < 1e-6 < later


@pytest.mark.parametrize("checkpointing", [False, True])
def test_dropout_is_no_change_of_the_policy(gemma_path, tmp_path, checkpointing):
    settings = {"group_size": 4, "beta": 0.1, "num_iterations": 2, "epsilon": 0.01}
    optim = replace(STILL, warmup=OptimConfig(1e-3))
    options = {"lora": AdapterConfig(r=4, dropout=0.2), "optim": optim, "gradient_checkpointing": checkpointing}
    module, log = build(gemma_path, grpo=GRPOConfig(**settings), **options), Log("fwm/kl", "fwm/clip_share")
    randomize(module)
    trainer(tmp_path, PhaseSwitch(0, ["fwm"], iterations=1), [log]).fit(module, Digits(size=8, batch_size=8))
    assert max(log.found["fwm/kl"]) < 1e-6
    assert log.found["fwm/clip_share"] == [0.0, 0.0]


def test_a_policys_gradients_are_those_without_dropout(gemma_path):
    """Recomputed activations, too."""
    found = []
    for dropout, checkpointing in ((0.0, False), (0.2, False), (0.2, True)):
        module = build(gemma_path, lora=AdapterConfig(r=4, dropout=dropout), gradient_checkpointing=checkpointing)
        randomize(module)
        if checkpointing:
            module.model.enable_input_require_grads()
        model = module.models.fwm
        for drops in (False, True):
            scored = model.score_ids([[5, 6, 7]], [[8, 9, 10]], training=True, dropout=drops)
            gradients = torch.autograd.grad(scored.values.sum(), module.adapters.parameters(model.adapter))
            found.append(torch.cat([gradient.flatten() for gradient in gradients]))
    plain, _, quiet, noisy, recomputed, _ = found
    torch.testing.assert_close(quiet, plain)
    torch.testing.assert_close(recomputed, plain)
    assert (noisy - plain).norm() > 1e-2 * plain.norm()


@pytest.mark.parametrize("accumulated", [1, 2])
def test_callbacks_see_the_gradients_of_the_mean(gemma_path, tmp_path, accumulated):
    """Those that the optimiser takes; their norm is in the log."""

    class Watch(Callback):
        seen = ()

        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            self.seen = (*self.seen, [p.grad.clone() for p in held(pl_module)])
            self.before = [p.detach().clone() for p in held(pl_module)]

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if (batch_idx + 1) % accumulated == 0:
                for parameter, gradient, before in zip(held(pl_module), self.seen[-1], self.before, strict=True):
                    torch.testing.assert_close(parameter.detach(), before - 0.02 * gradient)

    def held(module):
        return module.adapters.parameters(module.adapters.policy(Role.FWM))

    module = build(gemma_path, grpo=GRPOConfig(group_size=4), optim=CONSTANT, optimizer=SGD)
    randomize(module)
    watch, log = Watch(), Log("fwm/grad_norm", "idm/grad_norm")
    run = trainer(tmp_path, PhaseSwitch(0, ["fwm"], iterations=1), [watch, log], accumulate_grad_batches=accumulated)
    run.fit(module, Digits(size=16, batch_size=4))
    norms = [float(torch.cat([part.flatten() for part in gradients]).norm()) for gradients in watch.seen]
    assert log.found["fwm/grad_norm"][::accumulated] == pytest.approx(norms, rel=1e-5)
    assert log.found["idm/grad_norm"] == []


@pytest.mark.parametrize(("role", "phase"), [("fwm", "fwm"), ("idm", "idm")])
def test_the_share_of_rollouts_without_an_end(gemma_path, tmp_path, role, phase):
    class Watch(Callback):
        shares = ()

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            rows = outputs["rollouts"].completions.rows()
            eos = pl_module.models.grammars[Role(role)].eos
            self.shares = (*self.shares, sum(row[-1] != eos for row in rows) / len(rows))

    module = build(gemma_path, grpo=GRPOConfig(group_size=4), optim=STILL, sampling=SamplingConfig(1.0, 1.0))
    randomize(module)
    watch, log = Watch(), Log(f"{role}/truncated_share")
    trainer(tmp_path, PhaseSwitch(0, [phase], iterations=1), [watch, log]).fit(module, Digits(size=8, batch_size=4))
    assert log.found[f"{role}/truncated_share"] == pytest.approx(list(watch.shares))
    assert 0 < sum(watch.shares) < len(watch.shares)
