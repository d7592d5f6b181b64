"""WorldPrediction on small videos in the official layout."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from support.image_world import clip_folder, liquid_folder, model, trainer
from support.suites.worldprediction import sample, segment, write
from support.videos import number, write_sound, write_video
from swirl_lightning.benchmarks.worldprediction import WorldPrediction
from swirl_lightning.callbacks.predictions import Predictions

pytest.importorskip("av")


def test_rollouts_start_and_end_where_they_should(tmp_path):
    pp = {"COIN": {"x": sample(0), "y": sample(2)}}
    pp["IKEA-ASM"] = {"z": sample(1, "two.mp4", original_segments=["c"])}
    pp["COIN"]["w"] = sample(0, original_segments=[segment("one", 0.1, 0.2, "lift it")])
    data = WorldPrediction(data_dir=write(tmp_path, pp, {"COIN": {"v": sample(0)}}))
    data.prepare_data()
    data.setup("test")
    rows = {row.id: row for row in data.split("test")}
    assert set(rows) == {"PP/COIN/x", "PP/COIN/y", "PP/IKEA-ASM/z", "PP/COIN/w"}  # WM is a benchmark of its own
    row = rows["PP/COIN/x"]
    steps = [row, *row.turns]
    assert [s.action for s in steps] == ["open the box", "take the screw", "close the box"]
    assert number(row.before) == 2  # first frame of the first segment
    assert [number(s.after) for s in steps] == [4, 7, 9]  # last frame of each
    assert row.choices.answer == 0
    assert row.choices.actions[1] == "take the screw, then open the box, then close the box"
    assert number(row.choices.after) == 9
    assert [s.meta["groups"] for s in steps][1] == ["turn 2", "COIN", "COIN/turn 2"]
    assert rows["PP/COIN/y"].action == "close the box"
    # what happened is told apart from the candidate, which may be another video's
    assert (rows["PP/IKEA-ASM/z"].action, rows["PP/IKEA-ASM/z"].choices.answer) == ("close the box", 1)
    assert rows["PP/COIN/w"].action == "lift it"
    assert len(list((tmp_path / "frames").rglob("*.png"))) > 4


def test_frames_of_the_middle_of_each_segment(tmp_path):
    """As in the authors' code: the first step's reference is the start frame."""
    (row,) = WorldPrediction(
        data_dir=write(tmp_path, {"COIN": {"x": sample(0)}}), ground_truth="0", frames="middle"
    ).split("test")
    # segments of 0.2 to 0.4, 0.4 to 0.7 and 0.7 to 0.9 s; ten frames a second
    assert [number(frame) for frame in (row.before, row.after, *(turn.after for turn in row.turns))] == [3, 3, 6, 8]
    with pytest.raises(ValueError, match="frames must be 'ends' or 'middle'"):
        WorldPrediction(data_dir=".", frames="start")


def test_frames_that_nobody_asks_for_are_not_cut(tmp_path):
    pp = {"COIN": {str(n): sample(n, "two" if n else "one") for n in range(3)}}
    write_video(tmp_path / "videos" / "COIN" / "two.mp4")
    folder = write(tmp_path, pp)
    frames = tmp_path / "frames"
    (row,) = WorldPrediction(data_dir=folder, ground_truth="0", max_turns=1, limit=1).split("test")
    assert len(list(frames.rglob("*.png"))) == 3  # the start, the end of the first step, that of the last
    assert (row.turns, number(row.after), number(row.choices.after)) == ((), 4, 9)


@pytest.mark.parametrize(
    ("truths", "option", "answers"),
    [((0, 2), "auto", [0, 2]), ((1, 3), "auto", [0, 2]), ((1, 2), "0", [1, 2]), ((1, 2), "1", [0, 1])],
)
def test_where_answers_start_to_count(tmp_path, truths, option, answers):
    pp = {"COIN": {str(n): sample(truth) for n, truth in enumerate(truths)}}
    data = WorldPrediction(data_dir=write(tmp_path, pp), ground_truth=option)
    assert [row.choices.answer for row in data.split("test")] == answers


@pytest.mark.parametrize(("truths", "why"), [((1, 2), "neither 0 nor"), ((0, 3), "both 0 and")])
def test_a_file_that_does_not_tell_is_refused(tmp_path, truths, why):
    pp = {"COIN": {str(n): sample(truth) for n, truth in enumerate(truths)}}
    with pytest.raises(ValueError, match=f"{why}.*set ground_truth"):
        WorldPrediction(data_dir=write(tmp_path, pp)).setup("test")


def test_broken_samples_are_skipped_and_the_others_kept(tmp_path):
    pp = {
        "COIN": {
            "good": sample(0),
            "beyond": sample(3),
            "no such segment": sample(0, candidates=[["a"], ["q"]]),
            "no fields": {"ground_truth": 0},
            "gone": sample(0, "gone"),
            "damaged": sample(0, "damaged"),
            "empty": sample(0, "empty"),
            "late": sample(0, action_segments={u: segment("one", 50, 60, "x") for u in "abc"}),
        }
    }
    folder = write(tmp_path, pp)
    for name, content in (("damaged", b"x" * 1000), ("empty", b"")):
        (tmp_path / "videos" / "COIN" / f"{name}.mp4").write_bytes(content)
    data = WorldPrediction(data_dir=folder, ground_truth="0")
    with pytest.warns(UserWarning, match="7 of 8 records cannot be used"):
        data.setup("test")
    assert [row.id for row in data.split("test")] == ["PP/COIN/good"]
    kinds = {k.removeprefix("skipped: "): n for k, n in data.counts["test"].items() if ":" in k}
    assert kinds == {"not in the official layout": 3, "missing video": 1, "damaged video": 2, "no such frame": 1}
    with pytest.raises(ValueError, match="7 of 8"):
        WorldPrediction(data_dir=folder, ground_truth="0", strict=True).setup("test")


def test_broken_data_is_named_counted_and_the_rest_is_scored(tmp_path):
    """Videos without frames, among others."""
    nameless = {uid: segment("one", 0.2, 0.4, " ") for uid in "abc"}
    pp = {"COIN": {"good": sample(0), "sound": sample(0, "sound"), "still": sample(0, "still")}}
    pp["COIN"]["nameless"] = sample(0, action_segments=nameless)
    pp["COIN"]["gone"] = sample(0, "gone")
    folder = write(tmp_path / "data", pp)
    write_sound(tmp_path / "data" / "videos" / "COIN" / "sound.mp4")
    write_video(tmp_path / "data" / "videos" / "COIN" / "still.avi", frames=0)
    data = WorldPrediction(data_dir=folder, ground_truth="0", clip=str(clip_folder(tmp_path / "clip")))
    base = liquid_folder(tmp_path / "base")
    with pytest.warns(UserWarning, match="4 of 5 records cannot be used") as caught:
        results = trainer(tmp_path).test(model(base), data, verbose=False)[0]
    message = next(str(w.message) for w in caught if "cannot be used" in str(w.message))
    for reason in (
        "PP/COIN/sound: no video stream",
        "PP/COIN/still: ",
        "PP/COIN/nameless: not in the official layout (segment 'a' has no label",
        "PP/COIN/gone: missing video",
    ):
        assert reason in message
    assert (data.counts["test"]["used"], data.counts["test"]["skipped"]) == (1, 4)
    assert -1 <= results["test/fwm/sampled/clip_target/turn 3"] <= 1
    path = tmp_path / "data" / "WorldPrediction-PP.json"
    path.write_bytes(path.read_bytes().replace(b"open", b"\xffpen", 1))
    module = model(base)
    with pytest.raises(ValueError, match=r"PP/COIN/good: a text holds half"):
        trainer(tmp_path).test(module, WorldPrediction(data_dir=folder, ground_truth="0", strict=True), verbose=False)
    assert module.model is None


def with_times(start, end, video="one"):
    return sample(0, action_segments={uid: segment(video, start, end, "x") for uid in "abc"})


ODD = {
    "endless": with_times(0.2, float("inf")),
    "endless start": with_times(float("inf"), float("inf")),
    "a number beyond floats": with_times(0, 10**400),
    "a number beyond integers": with_times(0, "{digits}"),
    "far away": with_times(0, 1e300),
    "no number": with_times(float("nan"), 1),
    "NUL in a name": sample(0, "a\0b"),
    "a long name": sample(0, "x" * 5000),
    "half of a surrogate pair": sample(0, "\ud83d"),
    "the same in an action": sample(0, action_segments={u: segment("one", 0.2, 0.4, "\ud83d") for u in "abc"}),
    "segments in a list": sample(0, candidates=[[7], [8]], action_segments=[]),
    "very deep": sample(0, candidates=[[[["a"] * 3] * 3] * 3] * 3),
    "no object": [],
    "a video above": sample(0, "../secret"),
    "a video elsewhere": sample(0, "/{root}/secret"),
}


@pytest.mark.parametrize("odd", ODD.values(), ids=ODD)
def test_one_sample_costs_itself_alone(tmp_path, odd):
    odd = json.loads(json.dumps(odd).replace("{root}", str(tmp_path).lstrip("/")))
    folder = write(tmp_path / "data", {"COIN": {"good": sample(0), "odd": odd}})
    path = tmp_path / "data" / "WorldPrediction-PP.json"
    path.write_text(path.read_text().replace('"{digits}"', "1" * 5000))  # json writes none so long
    for place in (tmp_path, tmp_path / "data" / "videos"):
        write_video(place / "secret.mp4")
    data = WorldPrediction(data_dir=folder, ground_truth="0")
    with pytest.warns(UserWarning, match=r"1 of 2 records cannot be used .*\n  PP/COIN/odd: "):
        data.setup("test")
    assert [row.id for row in data.split("test")] == ["PP/COIN/good"]


def test_another_video_under_the_same_name_has_frames_of_its_own(tmp_path):
    folder = write(tmp_path / "data", {"COIN": {"x": sample(0)}})
    write_video(tmp_path / "other.mp4", 30, black=True)
    shown = []
    for video in (None, tmp_path / "other.mp4"):
        for own in (tmp_path / "data" / "videos").rglob("*.mp4") if video else ():
            own.write_bytes(video.read_bytes())
        (row,) = WorldPrediction(data_dir=folder, frames_dir=str(tmp_path / "frames"), ground_truth="0").split("test")
        shown.append([number(image.before) for image in (row, *row.turns)])
    assert shown[0] != shown[1]


def test_a_frame_of_a_later_turn_that_is_damaged_costs_its_sample(tmp_path):
    folder = write(tmp_path, {"COIN": {"x": sample(0)}, "IKEA-ASM": {"y": sample(0, "two.mp4")}})
    records = {row.id: row for row in WorldPrediction(data_dir=folder, ground_truth="0").checked("test")}
    records["PP/COIN/x"].further[-1].write_bytes(b"cut")
    with pytest.warns(UserWarning, match=r"1 of 2 records cannot be used .*\n  PP/COIN/x \(turn 3 .*not readable"):
        (row,) = WorldPrediction(data_dir=folder, ground_truth="0").split("test")
    assert row.id == "PP/IKEA-ASM/y"


@pytest.mark.parametrize("name", ["../../outside", "{root}/outside", "COIN/../../../outside", "a\0b", ""])
def test_no_frame_is_written_outside_the_folder_of_frames(tmp_path, name):
    name = name.format(root=tmp_path)
    folder = write(tmp_path / "a" / "data", {"COIN": {"good": sample(0)}, name: {"odd": sample(0)}})
    write_video(tmp_path / "a" / "data" / "videos" / "one.mp4")  # whatever the dataset is called
    before = {path for path in tmp_path.rglob("*") if (tmp_path / "a" / "data") not in path.parents}
    data = WorldPrediction(data_dir=folder, ground_truth="0")
    with pytest.warns(UserWarning, match="1 of 2 records cannot be used"):
        data.setup("test")
    assert {path for path in tmp_path.rglob("*") if (tmp_path / "a" / "data") not in path.parents} == before
    assert all((tmp_path / "a" / "data" / "frames") in path.parents for path in tmp_path.rglob("*.png"))


@pytest.mark.parametrize(
    "odd",
    [
        b"[" * 50_000 + b"]" * 50_000,
        b'{"video": "\xff"}',
        json.dumps(sample(0) | {"candidates": []}).encode(),
        json.dumps(sample(False)).encode(),
    ],
    ids=["deep", "no UTF-8", "no candidates", "no number"],
)
def test_one_sample_does_not_cost_its_file(tmp_path, odd):
    folder = write(tmp_path, {"COIN": {"one": sample(1), "odd": "{odd}", "other": sample(3)}})
    path = tmp_path / "WorldPrediction-PP.json"
    path.write_bytes(path.read_bytes().replace(b'"{odd}"', odd))
    data = WorldPrediction(data_dir=folder)
    with pytest.warns(UserWarning, match=r"1 of 3 records cannot be used .*\n  PP/COIN/odd: "):
        data.setup("test")
    assert [row.id for row in data.split("test")] == ["PP/COIN/one", "PP/COIN/other"]


def test_a_dataset_that_is_none_costs_itself_and_a_name_that_comes_twice_is_told(tmp_path):
    folder = write(tmp_path, {"COIN": {"one": sample(1), "twice": sample(3), "again": sample(3)}, "IKEA": [1]})
    path = tmp_path / "WorldPrediction-PP.json"
    path.write_text(path.read_text().replace('"again"', '"twice"'))
    data = WorldPrediction(data_dir=folder)
    with pytest.warns(UserWarning, match=r"2 of 4 records(.|\n)*'twice' comes 2 times(.|\n)*IKEA: the dataset must be"):
        data.setup("test")
    assert [row.id for row in data.split("test")] == ["PP/COIN/one", "PP/COIN/twice"]


def test_a_file_nested_too_deeply_is_named(tmp_path):
    folder = write(tmp_path, {"COIN": {"good": sample(0)}})
    for content in ("[" * 50_000, json.dumps({"COIN": {"good": sample(0)}})[:-30]):
        (tmp_path / "WorldPrediction-PP.json").write_text(content)
        with pytest.raises(ValueError, match=r"WorldPrediction-PP\.json: not JSON"):
            WorldPrediction(data_dir=folder, ground_truth="0").setup("test")


def test_options_and_files(tmp_path):
    with pytest.raises(ValueError, match="max_turns"):
        WorldPrediction(data_dir=".", max_turns=7)
    with pytest.raises(ValueError, match="task must be one of"):
        WorldPrediction(data_dir=".", task="XX")
    with pytest.raises(FileNotFoundError, match=r"no file .*WorldPrediction-PP\.json"):
        WorldPrediction(data_dir=str(tmp_path)).setup("test")
    folder = write(tmp_path, {"COIN": {"x": sample(0)}})
    with pytest.raises(ValueError, match="no dataset EK; it has COIN"):
        WorldPrediction(data_dir=folder, datasets=["EK"]).setup("test")


def test_end_to_end(tmp_path):
    pp = {"COIN": {"x": sample(0), "y": sample(2)}, "IKEA-ASM": {"z": sample(1, "two", candidates=[["a"], ["b"]])}}
    data = WorldPrediction(
        data_dir=write(tmp_path / "data", pp),
        ground_truth="0",
        max_turns=2,
        clip=str(clip_folder(tmp_path / "clip")),
        eval_batch_size=3,
    )
    module = model(liquid_folder(tmp_path / "base"))
    shown = []

    class Recorder(Predictions):
        def told(self, mode, rows, states, words):
            shown.append((rows, states))
            super().told(mode, rows, states, words)

    results = trainer(tmp_path, Recorder()).test(module, data, verbose=False)[0]
    prefix = "test/fwm/sampled/clip_source"
    names = {k.removeprefix(prefix).lstrip("/") for k in results if k.startswith(prefix)}
    turns = {"turn 1", "turn 2", "mean over turns"}
    of_coin = {f"COIN/{turn}" for turn in turns}
    assert names == {"", *turns, "COIN", *of_coin, "IKEA-ASM", "IKEA-ASM/turn 1", "IKEA-ASM/mean over turns"}
    first, second = (results[f"{prefix}/turn {turn}"] for turn in (1, 2))
    assert results[prefix] == pytest.approx((3 * first + 2 * second) / 5)
    assert results[f"{prefix}/mean over turns"] == pytest.approx((first + second) / 2)
    coin = [results[f"{prefix}/COIN/turn {turn}"] for turn in (1, 2)]
    assert results[f"{prefix}/COIN/mean over turns"] == pytest.approx(sum(coin) / 2)
    assert 0 <= results["test/choice/idm_accuracy"] <= 1
    (first, made), (second, _) = shown
    assert [row.meta["turn"] for row in (*first, *second)] == [1, 1, 1, 2, 2]
    for row, before in zip(second, made[:2], strict=True):
        assert row.before is before  # the model's own previous frame
    lines = (tmp_path / "predictions" / "sampled-rank0.jsonl").read_text().splitlines()
    assert [json.loads(line)["id"] for line in lines][-1] == "PP/COIN/y/turn 2"


def test_choices_are_scored_by_log_probability(tmp_path):
    """Accuracy 1 if the answer is what the model finds likeliest, 0 otherwise."""
    pp = {"COIN": {"x": sample(0)}}
    data = WorldPrediction(data_dir=write(tmp_path / "data", pp), ground_truth="0")
    module = model(liquid_folder(tmp_path / "base"))
    row = data.split("test")[0]
    module.configure_model()
    module.evaluator.start(data, torch.device("cpu"))
    evaluator, backbone = module.evaluator, module.backbone
    x, y = backbone.encode_states([row.before, row.choices.after], torch.device("cpu"))
    actions = [backbone.encode_action(words) for words in row.choices.actions]
    scored = [module.models.idm.log_prob([z], [x], [y]).mean_per_token()[0] for z in actions]
    best = int(torch.stack(scored).argmax())
    for answer in range(3):
        row = replace(row, choices=replace(row.choices, answer=answer))
        evaluator.start(data, torch.device("cpu"))
        evaluator._choose([row], torch.device("cpu"))
        assert float(evaluator._means["choice/idm_accuracy"].compute()) == float(answer == best)
