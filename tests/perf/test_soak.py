"""A run of the soak test that is stopped at one chosen place."""

from __future__ import annotations

import json

from support.processes import run_module


def test_sigterm_to_one_of_two_ranks_in_the_validation(tmp_path):
    """Both save and end; Lightning's own handler would leave the other one waiting."""
    done = run_module("support.ddp_terminated", tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads((tmp_path / "told.json").read_text())
    assert told["late"] == []
    assert told["codes"] == [143, 143]
    assert told["label"] == "SFT"  # of the validation after the warm-up
