from __future__ import annotations

import pytest

from support.judge_server import KEY, serving


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", KEY)
    with serving() as found:
        yield found
