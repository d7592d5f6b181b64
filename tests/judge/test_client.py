"""The judge against a real HTTP server on localhost."""

from __future__ import annotations

import base64
import io
import json

import pytest
from jsonargparse import ArgumentParser
from PIL import Image

from support.judge_server import KEY, serving
from support.visual_world import liquid_folder, model, picture, trainer, write_aurora
from swirl_lightning.benchmarks.aurora import Aurora
from swirl_lightning.data import TransitionDataModule
from swirl_lightning.judge import Judge
from swirl_lightning.judge.metric import JudgeScore
from swirl_lightning.judge.templates import TEMPLATES
from swirl_lightning.transition import Transition


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", KEY)
    with serving() as found:
        yield found


def judge(server, folder, **kwargs):
    settings = {"api_key_env": "JUDGE_KEY", "cache_dir": str(folder / "cache"), "backoff": 0.01, "timeout": 5}
    return Judge("grader", server.url, **(settings | kwargs))


def rows(count, task="kubric"):
    return [Transition(picture(n), picture(n + 90), f"move {n}", f"r{n}", {"task": task}) for n in range(count)]


def scored(metric, predicted, transitions):
    metric.update(predicted, transitions)
    metric.sync()  # what Lightning does first
    return {k: float(v) for k, v in metric.compute().items()}


def test_scores_pictures_and_usage(server, tmp_path):
    server.answer = lambda request: f'Well. ```json\n{{"Score": {len(server.requests) * 2}}}\n```'
    metric = JudgeScore(judge(server, tmp_path, concurrency=1), "aurora", ["kubric"])
    found = scored(metric, [picture(5), picture(6), None], rows(3))
    assert found["judge"] == pytest.approx((2 + 4 + 0) / 3)  # the missing prediction has the lowest score
    assert found["judge/kubric"] == found["judge"]
    assert (found["judge_asked"], found["judge_unparsable"], found["judge_failed"]) == (3, 0, 0)
    assert (found["judge_prompt_tokens"], found["judge_completion_tokens"]) == (200, 10)
    text, before, predicted = server.requests[0]["messages"][0]["content"]
    assert "Action: move 0" in text["text"]
    shown = [Image.open(io.BytesIO(base64.b64decode(p["image_url"]["url"].split(",")[1]))) for p in (before, predicted)]
    assert [s.tobytes() for s in shown] == [picture(0).tobytes(), picture(5).tobytes()]
    assert server.keys == [f"Bearer {KEY}"] * 2


def test_a_finished_evaluation_costs_nothing(server, tmp_path):
    first = scored(JudgeScore(judge(server, tmp_path), "aurora"), [picture(5)] * 4, rows(4))
    assert len(server.requests) == 4
    again = scored(JudgeScore(judge(server, tmp_path), "aurora"), [picture(5)] * 4, rows(4))
    assert len(server.requests) == 4
    assert again["judge"] == first["judge"]
    assert again["judge_prompt_tokens"] == 0
    # another picture, question or model is another question
    scored(JudgeScore(judge(server, tmp_path), "aurora"), [picture(6)], rows(1))
    scored(JudgeScore(judge(server, tmp_path), "bytemorph"), [picture(5)], rows(1))
    scored(JudgeScore(judge(server, tmp_path, temperature=None), "aurora"), [picture(5)], rows(1))
    assert len(server.requests) == 7
    assert "temperature" not in server.requests[-1]


def test_an_interrupted_evaluation_goes_on(server, tmp_path):
    server.script = [200, 200, *[500] * 8]
    first = scored(JudgeScore(judge(server, tmp_path, retries=0, concurrency=1), "aurora"), [picture(5)] * 6, rows(6))
    assert (first["judge_asked"], first["judge_failed"]) == (6, 4)
    assert first["judge"] == 7
    server.script, server.requests = [], []
    second = scored(JudgeScore(judge(server, tmp_path), "aurora"), [picture(5)] * 6, rows(6))
    assert len(server.requests) == 4  # only what failed
    assert (second["judge_failed"], second["judge_prompt_tokens"]) == (0, 400)
    damaged = next((tmp_path / "cache").rglob("*.json"))
    damaged.write_text("{")
    scored(JudgeScore(judge(server, tmp_path), "aurora"), [picture(5)] * 6, rows(6))
    assert len(server.requests) == 5


def test_retries_until_the_server_is_well(server, tmp_path):
    server.script = [429, 503, 500]
    found = scored(JudgeScore(judge(server, tmp_path, retries=3), "aurora"), [picture(5)], rows(1))
    assert found["judge"] == 7
    assert len(server.requests) == 4


def test_a_slow_server_is_not_waited_for(server, tmp_path):
    server.delay = 0.5
    found = scored(JudgeScore(judge(server, tmp_path, timeout=0.1, retries=1), "aurora"), [picture(5)], rows(1))
    assert found["judge_failed"] == 1
    assert "judge" not in found
    assert len(server.requests) == 2


def test_a_refusal_stops_with_a_reason_and_without_the_key(server, tmp_path, capfd):
    server.script = [401]
    metric = JudgeScore(judge(server, tmp_path), "aurora")
    metric.update([picture(5)], rows(1))
    with pytest.raises(ValueError, match=r"refuses \(401\)") as error:
        metric.collect()
    assert KEY not in str(error.value)
    assert len(server.requests) == 1  # not retried


def test_a_question_that_is_refused_costs_itself_only(server, tmp_path):
    server.script = [400]
    found = scored(JudgeScore(judge(server, tmp_path, concurrency=1), "aurora"), [picture(5)] * 2, rows(2))
    assert (found["judge"], found["judge_failed"], len(server.requests)) == (7, 1, 2)


def test_at_most_so_many_at_a_time(server, tmp_path):
    server.delay = 0.05
    scored(JudgeScore(judge(server, tmp_path, concurrency=3), "aurora"), [picture(5)] * 12, rows(12))
    assert server.most == 3


@pytest.mark.parametrize(
    ("answer", "score"),
    [
        ('{"score": 0}', 0),
        ('{"score": "8.5", "why": "x"}', 8.5),
        ('First {"x": 1}, then {"Score": 10}', 10),
        ('{"score": 11}', None),
        ('{"score": -1}', None),
        ('{"score": true}', None),
        ('{"score": "good"}', None),
        ("8/10", None),
        ("", None),
    ],
)
def test_answers_are_read_and_never_clamped(answer, score):
    assert TEMPLATES["aurora"].parse(answer) == (score, None if score is not None else "unparsable")


def test_unparsable_answers_stay_in_the_report(server, tmp_path):
    server.answer = lambda request: "no idea" if "move 1" in json.dumps(request) else '{"score": 4}'
    found = scored(JudgeScore(judge(server, tmp_path), "aurora"), [picture(5)] * 3, rows(3))
    assert (found["judge"], found["judge_asked"], found["judge_unparsable"]) == (4, 3, 1)


def test_scales_and_actions(server, tmp_path):
    server.answer = lambda request: '{"score": 64}'
    assert scored(JudgeScore(judge(server, tmp_path), "bytemorph"), [picture(5)], rows(1))["judge"] == 64
    server.answer = lambda request: '{"score": 3}'
    metric = JudgeScore(judge(server, tmp_path), "action")
    assert scored(metric, ["lift {it}"], rows(1))["judge"] == 3
    text = server.requests[-1]["messages"][0]["content"][0]["text"]
    assert "Reference action: move 0\nPredicted action: lift {it}\n" in text
    asked = len(server.requests)  # a template with the reference says nothing of a row without one
    bare = [Transition(picture(0), None, "move 0", "r0", {"task": "kubric"})]
    assert scored(JudgeScore(judge(server, tmp_path), "bytemorph"), [picture(5)], bare)["judge_asked"] == 0
    assert len(server.requests) == asked
    assert scored(JudgeScore(judge(server, tmp_path), "aurora"), [picture(5)], bare)["judge"] == 3
    with pytest.raises(ValueError, match="no judge template 'x'"):
        JudgeScore(judge(server, tmp_path), "x")


def test_bad_settings(monkeypatch, tmp_path):
    with pytest.raises(ValueError, match="concurrency"):
        Judge("m", concurrency=0)
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    with pytest.raises(ValueError, match=r"export JUDGE_KEY=\.\.\."):
        Judge("m", api_key_env="JUDGE_KEY").check()
    write_aurora(tmp_path)
    with pytest.raises(ValueError, match="key is not set"):
        Aurora(data_dir=str(tmp_path), judge=Judge("m", api_key_env="JUDGE_KEY")).setup("test")


def test_end_to_end_and_no_key_on_disk(server, tmp_path):
    write_aurora(tmp_path / "data")
    base = liquid_folder(tmp_path / "base")
    asked = judge(server, tmp_path)

    def run():
        data = Aurora(data_dir=str(tmp_path / "data"), judge=asked, eval_batch_size=4)
        return trainer(tmp_path).test(model(base), data, verbose=False)[0]

    results = run()
    assert results["test/fwm/sampled/judge"] == 7
    assert results["test/fwm/sampled/judge/clevr"] == 7
    assert results["test/fwm/sampled/judge_asked"] == 6
    assert results["test/idm/sampled/judge_asked"] == 4
    count = len(server.requests)
    again = run()
    assert len(server.requests) == count
    assert again["test/fwm/sampled/judge"] == 7
    for path in (tmp_path / "cache").rglob("*"):
        assert path.is_dir() or KEY.encode() not in path.read_bytes()


def test_from_a_config():
    parser = ArgumentParser()
    parser.add_subclass_arguments(TransitionDataModule, "data")
    config = {"class_path": "swirl_lightning.judge.Judge", "init_args": {"model": "gpt-4o", "concurrency": 2}}
    data = {"class_path": "swirl_lightning.benchmarks.aurora.Aurora", "init_args": {"data_dir": "x", "judge": config}}
    built = parser.instantiate(parser.parse_object({"data": data})).data
    assert (built.judge.model, built.judge.concurrency) == ("gpt-4o", 2)
