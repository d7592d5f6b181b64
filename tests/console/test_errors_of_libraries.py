"""Errors of libraries that a user can mend are one line."""

import warnings

import pytest
import torch.distributed as dist

from support.small_disk import room_for
from support.swirl import build
from swirl_lightning.console.run import run_command


def test_a_rank_whose_partner_ends_before_they_meet_ends_in_one_line():
    def meet():
        raise dist.DistNetworkError("Failed to recv, got 0 bytes. Connection was likely closed. Did the server crash?")

    with pytest.raises(SystemExit, match="error: another rank has ended"):
        run_command(meet)


@pytest.mark.parametrize(("room", "told"), [(10, r"too large: .*new"), (8_000, r"new cannot be written: .*too large")])
def test_adapters_that_a_full_disk_does_not_take_are_one_line(tmp_path, gemma_path, room, told):
    """The system's error comes from the model card, safetensors' own from the weights."""
    module = build(gemma_path, quantization=None)
    module.configure_model()
    with room_for(room), pytest.raises(OSError, match=told):
        module.export(tmp_path / "new")


def test_advice_that_is_followed_already_is_not_shown():
    """Lightning asks to reduce what is logged; ours is reduced, another's may not be."""
    told = "It is recommended to use `self.log({!r}, ..., sync_dist=True)` when logging on epoch level"
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        run_command(lambda: [warnings.warn(told.format(name)) for name in ("val/fwm/log_prob", "fwm/loss", "mine")])
    assert [str(warning.message) for warning in seen] == [told.format("mine")]
