"""Metrics of an optimiser step against values computed by hand."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.strategies import SingleDeviceStrategy

from support.phantom.device import CUDA, PhantomCuda
from swirl_lightning.training.step_metrics import StepMetrics


class Log:
    """Stands for the module that logs; its trainer has one device."""

    def __init__(self, device="cpu"):
        self.trainer = SimpleNamespace(strategy=SingleDeviceStrategy(device))
        self.found, self.shown = {}, set()

    def log(self, name, value, prog_bar):
        self.found[name] = float(value)
        if prog_bar:
            self.shown.add(name)


def test_means_are_over_rows_and_not_over_micro_batches():
    metrics, module = StepMetrics(), Log()
    metrics.add("fwm/", {"reward": torch.tensor(-1.0), "entropy": torch.tensor(2.0)}, 3)
    metrics.add("fwm/", {"anchor_nll": torch.tensor(0.0)}, 0)
    metrics.add("fwm/", {"reward": torch.tensor(-5.0), "entropy": torch.tensor(4.0)}, 1)
    metrics.add("fwm/", {"anchor_nll": torch.tensor(7.0)}, 2)
    metrics.log(module)
    assert module.found == pytest.approx({"fwm/reward": -2.0, "fwm/entropy": 2.5, "fwm/anchor_nll": 7.0})
    assert module.shown == {"fwm/reward"}


def test_values_of_rows_count_where_a_row_has_one():
    metrics, module = StepMetrics(), Log()
    for values in ([1.0, torch.nan, 3.0], [8.0], [torch.nan]):
        metrics.add_values("fwm/rewards/", {"length": torch.tensor(values), "never": torch.tensor([torch.nan])})
    metrics.add_values("fwm/rewards/", {"narrow": torch.tensor([256.0, 1.0], dtype=torch.bfloat16)})
    metrics.log(module)
    assert module.found == {"fwm/rewards/length": 4.0, "fwm/rewards/narrow": 128.5}


def test_each_step_begins_anew_and_one_without_metrics_logs_nothing():
    metrics, module = StepMetrics(), Log()
    for value in (1.0, 3.0):
        metrics.add("warmup/", {"fwm_nll": torch.tensor(value)}, 2)
        metrics.log(module)
        assert module.found == {"warmup/fwm_nll": value}
    module.found.clear()
    metrics.log(module)
    assert not module.found


def test_a_step_goes_on_from_its_state():
    metrics, module = StepMetrics(), Log()
    metrics.add("idm/", {"reward": torch.tensor(1.0)}, 1)
    again = StepMetrics()
    again.restore(metrics.state(), torch.device("cpu"))
    again.add("idm/", {"reward": torch.tensor(4.0)}, 2)
    again.log(module)
    assert module.found == {"idm/reward": 3.0}


def test_a_mean_over_no_row_of_any_rank_is_not_logged():
    metrics, module = StepMetrics(), Log()
    metrics.add("fwm/", {"anchor_nll": torch.tensor(0.0)}, 0)
    metrics.add("fwm/", {"reward": torch.tensor(-1.0)}, 2)
    metrics.log(module)
    assert module.found == {"fwm/reward": -1.0}


@pytest.mark.parametrize("state", [{1: [0.0, 1.0]}, {"fwm/kl": [10**400, 1.0]}, {"fwm/kl": ["x", 1.0]}, ["fwm/kl"]])
def test_a_damaged_state_is_an_error_of_types(state):
    with pytest.raises((TypeError, AttributeError)):  # which a checkpoint's reader takes for damage
        StepMetrics().restore(state, torch.device("cpu"))


def test_a_learners_metrics_may_be_plain_numbers_or_lie_on_the_cpu():
    """Those of the engine are on the device, and all are reduced together."""
    with PhantomCuda():
        metrics, module = StepMetrics(), Log(CUDA)
        metrics.add("fwm/", {"loss": torch.tensor(2.0).to(CUDA)}, torch.tensor(3.0).to(CUDA))
        metrics.add("fwm/", {"baseline": 0.5}, 4)
        metrics.add("fwm/", {"baseline": 1.5}, 4)
        metrics.add("fwm/", {"skipped": torch.tensor(1.0)}, 2)
        metrics.log(module)
    assert module.found == {"fwm/loss": 2.0, "fwm/baseline": 1.0, "fwm/skipped": 1.0}
