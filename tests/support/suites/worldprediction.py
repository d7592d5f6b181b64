"""A small WorldPrediction in the official layout."""

from __future__ import annotations

import json

from support.videos import write_video


def segment(video, start, end, label):
    return {
        "video": video,
        "segment_start_time": start,
        "segment_end_time": end,
        "action_label": label,
        "action_uid": label.replace(" ", "_"),
    }


def sample(truth, video="one", **extra):
    segments = {
        "a": segment(video, 0.2, 0.4, "open the box"),
        "b": segment(video, 0.4, 0.7, "take the screw"),
        "c": segment(video, 0.7, 0.9, "close the box"),
    }
    candidates = [["a", "b", "c"], ["b", "a", "c"], ["c", "a", "b"]]
    return {"states": [], "ground_truth": truth, "candidates": candidates, "action_segments": segments, **extra}


def write(root, pp, wm=None):
    write_video(root / "videos" / "COIN" / "one.mp4")
    write_video(root / "IKEA-ASM" / "two.mp4")
    (root / "WorldPrediction-PP.json").write_text(json.dumps(pp))
    if wm is not None:
        (root / "WorldPrediction-WM.json").write_text(json.dumps(wm))
    return str(root)
