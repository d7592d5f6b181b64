"""Errors of libraries that a user can mend are one line."""

import pytest
import torch.distributed as dist
from safetensors import SafetensorError

from support.swirl import build
from swirl_lightning.console.run import run_command


def test_a_rank_whose_partner_ends_before_they_meet_ends_in_one_line():
    def meet():
        raise dist.DistNetworkError("Failed to recv, got 0 bytes. Connection was likely closed. Did the server crash?")

    with pytest.raises(SystemExit, match="error: another rank has ended"):
        run_command(meet)


def test_adapters_that_a_full_disk_does_not_take_are_one_line(tmp_path, gemma_path, monkeypatch):
    def full(*args, **kwargs):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    module = build(gemma_path, quantization=None)
    module.configure_model()
    monkeypatch.setattr("peft.peft_model.safe_save_file", full)
    with pytest.raises(OSError, match=r"cannot be written to .*No space left on device"):
        module.export(tmp_path / "new")
