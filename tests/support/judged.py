"""A judge of a small server's, rows for it, and what it makes of them."""

from __future__ import annotations

from support.image_world import block_image
from swirl_lightning.judge import Judge
from swirl_lightning.transition import Transition


def judge(server, folder, **kwargs):
    settings = {"api_key_env": "JUDGE_KEY", "cache_dir": str(folder / "cache"), "backoff": 0.01, "timeout": 5}
    return Judge("grader", server.url, **(settings | kwargs))


def rows(count, task="kubric"):
    return [Transition(block_image(n), block_image(n + 90), f"move {n}", f"r{n}", {"task": task}) for n in range(count)]


def scored(metric, predicted, transitions):
    metric.update(predicted, transitions)
    metric.sync()  # what Lightning does first
    return {k: float(v) for k, v in metric.compute().items()}
