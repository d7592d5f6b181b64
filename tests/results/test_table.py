"""The table of results in the terminal."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

import pytest

from swirl_lightning.results.table import show


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_table_that_cannot_be_shown_ends_nothing(tmp_path, monkeypatch):
    path = tmp_path / "results.json"
    path.write_text(json.dumps({"test": {"SFT": {"fwm/sampled/exact_match": 0.5}}}))
    with suppress(OSError), open("/dev/full", "w") as full:  # what it has not taken it refuses once more at its end
        monkeypatch.setattr("sys.stdout", full)
        with pytest.warns(UserWarning, match=r"the table of .*results.json cannot be shown: .*No space left"):
            show(path, "test")
