"""A run of the soak test that is stopped at one chosen place."""

from __future__ import annotations

import json
import random
from collections import Counter

import pytest

from perf import soak
from support.processes import run_module


def test_sigterm_to_one_of_two_ranks_in_the_validation(tmp_path):
    """Both save and end; Lightning's own handler would leave the other one waiting."""
    done = run_module("support.ddp_terminated", tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads((tmp_path / "told.json").read_text())
    assert told["late"] == []
    assert told["codes"] == [143, 143]
    assert told["label"] == "SFT"  # of the validation after the warm-up


@pytest.mark.parametrize(("code", "counted"), [(0, 0), (-9, 1)])
def test_a_kill_that_came_too_late_is_none(tmp_path, monkeypatch, code, counted):
    """The first start ends with ``code``, all others whole."""
    codes = [code]

    class Ended:
        def __init__(self, *_, **__):
            self.codes = {0: codes.pop() if codes else 0}

        def end(self, seconds):
            return []

    hits = [{"signal": 9, "part": "export", "ranks": [0]}]
    monkeypatch.setattr(soak, "Attempt", Ended)
    monkeypatch.setattr(soak, "_strike", lambda *_: hits.pop() if hits else None)
    met = Counter()
    found = soak.kill_and_resume(tmp_path / "config.yaml", "accumulation 3", random.Random(0), {}, met)
    assert len(found["kills"]) == counted
    assert found["wrong"] == []
    assert met["export", 9] == counted
