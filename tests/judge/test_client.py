"""The judge against a real HTTP server on localhost."""

from __future__ import annotations

import base64
import io
import json

import pytest
from jsonargparse import ArgumentParser
from PIL import Image

from support.image_world import block_image, liquid_folder, model, trainer, write_aurora
from support.judge_server import KEY, body, completion
from support.judged import judge, rows, scored
from swirl_lightning.benchmarks.aurora import Aurora
from swirl_lightning.data import TransitionDataModule
from swirl_lightning.judge import Judge
from swirl_lightning.judge.metric import JudgeScore
from swirl_lightning.judge.templates import builtin
from swirl_lightning.transition import Transition


def test_scores_images_and_usage(server, tmp_path):
    server.answer = lambda request: f'Well. ```json\n{{"Score": {len(server.requests) * 2}}}\n```'
    metric = JudgeScore(judge(server, tmp_path, concurrency=1), "aurora", ["kubric"])
    found = scored(metric, [block_image(5), block_image(6), None], rows(3))
    assert found["judge"] == pytest.approx((2 + 4 + 0) / 3)  # the missing prediction has the lowest score
    assert found["judge/kubric"] == found["judge"]
    assert (found["judge_asked"], found["judge_unparsable"], found["judge_failed"]) == (3, 0, 0)
    assert (found["judge_prompt_tokens"], found["judge_completion_tokens"]) == (200, 10)
    text, before, predicted = server.requests[0]["messages"][0]["content"]
    assert "Action: move 0" in text["text"]
    shown = [Image.open(io.BytesIO(base64.b64decode(p["image_url"]["url"].split(",")[1]))) for p in (before, predicted)]
    assert [s.tobytes() for s in shown] == [block_image(0).tobytes(), block_image(5).tobytes()]
    assert server.keys == [f"Bearer {KEY}"] * 2


def test_a_finished_evaluation_costs_nothing(server, tmp_path):
    first = scored(JudgeScore(judge(server, tmp_path), "aurora"), [block_image(5)] * 4, rows(4))
    assert len(server.requests) == 4
    again = scored(JudgeScore(judge(server, tmp_path), "aurora"), [block_image(5)] * 4, rows(4))
    assert len(server.requests) == 4
    assert again["judge"] == first["judge"]
    assert again["judge_prompt_tokens"] == 0
    # another image, question or model is another question
    scored(JudgeScore(judge(server, tmp_path), "aurora"), [block_image(6)], rows(1))
    scored(JudgeScore(judge(server, tmp_path), "bytemorph"), [block_image(5)], rows(1))
    scored(JudgeScore(judge(server, tmp_path, temperature=None), "aurora"), [block_image(5)], rows(1))
    assert len(server.requests) == 7
    assert "temperature" not in server.requests[-1]


def test_an_interrupted_evaluation_goes_on(server, tmp_path):
    server.script = [200, 200, *[500] * 8]
    first = scored(
        JudgeScore(judge(server, tmp_path, retries=0, concurrency=1), "aurora"), [block_image(5)] * 6, rows(6)
    )
    assert (first["judge_asked"], first["judge_failed"]) == (6, 4)
    assert first["judge"] == 7
    server.script, server.requests = [], []
    second = scored(JudgeScore(judge(server, tmp_path), "aurora"), [block_image(5)] * 6, rows(6))
    assert len(server.requests) == 4  # only what failed
    assert (second["judge_failed"], second["judge_prompt_tokens"]) == (0, 400)
    damaged = next((tmp_path / "cache").rglob("*.json"))
    damaged.write_text("{")
    scored(JudgeScore(judge(server, tmp_path), "aurora"), [block_image(5)] * 6, rows(6))
    assert len(server.requests) == 5


def test_a_refusal_stops_with_a_reason_and_without_the_key(server, tmp_path, capfd):
    server.script = [401]
    metric = JudgeScore(judge(server, tmp_path), "aurora")
    metric.update([block_image(5)], rows(1))
    with pytest.raises(ValueError, match=r"refuses \(401\)") as error:
        metric.collect()
    assert KEY not in str(error.value)
    assert len(server.requests) == 1  # not retried


def test_what_is_refused_to_one_question_is_no_verdict_on_all(server, tmp_path):
    """Some endpoints answer 403 to an input that they flag."""
    server.script = [200, 403, 200]
    metric = JudgeScore(judge(server, tmp_path, concurrency=1), "aurora")
    with pytest.warns(UserWarning, match=r"1 of 3 questions:\n  1: the judge's endpoint refuses \(403\)"):
        found = scored(metric, [block_image(5)] * 3, rows(3))
    assert (found["judge"], found["judge_failed"]) == (7, 1)
    server.script = [403]  # the others are kept, and say that it answers
    again = JudgeScore(judge(server, tmp_path, concurrency=1), "aurora")
    with pytest.warns(UserWarning, match="1 of 3 questions"):
        found = scored(again, [block_image(5)] * 3, rows(3))
    assert (found["judge"], found["judge_failed"], len(server.requests)) == (7, 1, 4)


def test_a_test_that_no_judge_will_answer_stops_before_its_end(server, tmp_path):
    server.script = [401] * 99
    metric = JudgeScore(judge(server, tmp_path, concurrency=1), "aurora")

    def predict():
        for row in rows(40):
            metric.update([block_image(5)], [row])

    with pytest.raises(ValueError, match=r"refuses \(401\)"):
        predict()
    assert len(server.requests) < 40


def test_the_same_question_at_the_same_time_is_asked_once(server, tmp_path):
    server.delay = 0.1
    client = judge(server, tmp_path)
    sampled, greedy = JudgeScore(client, "aurora"), JudgeScore(client, "aurora")
    for metric in (sampled, greedy):
        metric.update([block_image(5)] * 4, rows(4))
    one, other = (scored(metric, [], []) for metric in (sampled, greedy))
    assert len(server.requests) == 4
    assert one["judge"] == other["judge"] == 7
    assert (one["judge_prompt_tokens"], other["judge_prompt_tokens"]) == (400, 0)


def test_questions_do_not_fill_the_memory(server, tmp_path):
    server.delay = 0.05
    metric = JudgeScore(judge(server, tmp_path, concurrency=1), "aurora")
    metric.update([block_image(5)] * 20, rows(20))
    assert len(server.requests) >= 20 - 1 - 8


def test_an_answer_that_cannot_be_kept_is_used(server, tmp_path):
    client = judge(server, tmp_path)
    client.check()
    (tmp_path / "cache").write_text("a file")
    with pytest.warns(UserWarning, match="is used and not kept"):
        assert scored(JudgeScore(client, "aurora"), [block_image(5)], rows(1))["judge"] == 7
    with pytest.raises(FileExistsError, match=r"name one with judge\.cache_dir"):
        client.check()


def test_a_question_that_is_refused_costs_itself_only(server, tmp_path):
    server.script = [400]
    found = scored(JudgeScore(judge(server, tmp_path, concurrency=1), "aurora"), [block_image(5)] * 2, rows(2))
    assert (found["judge"], found["judge_failed"], len(server.requests)) == (7, 1, 2)


def test_an_answer_without_a_score_is_not_kept(server, tmp_path):
    deep = '{"score": ' + "[" * 10_000 + "}"
    server.script = [body(completion(text)) for text in ("upstream error", deep, '{"score": 11}')]
    for _ in range(3):
        found = scored(JudgeScore(judge(server, tmp_path), "aurora"), [block_image(5)], rows(1))
        assert found["judge_unparsable"] == 1
    assert scored(JudgeScore(judge(server, tmp_path), "aurora"), [block_image(5)], rows(1))["judge"] == 7


@pytest.mark.parametrize(
    ("answer", "score"),
    [
        ('{"score": 0}', 0),
        ('{"score": "8.5", "why": "x"}', 8.5),
        ('First {"x": 1}, then {"Score": 10}', 10),
        ('The action "{"score": 10}" is none. {"score": 2}', 2),  # a quotation comes first
        ('{"score": 8, "why": "the {cup} moved,\nat last"}', 8),
        ('{"result": {"score": 5}}', 5),
        ('{"score": 3} {"score": 11}', 3),
        ('{"a":' * 5000 + '{"score": 4}', 4),
        ('{"score": 11}', None),
        ('{"score": -1}', None),
        ('{"score": true}', None),
        ('{"score": "good"}', None),
        ("8/10", None),
        ("", None),
    ],
)
def test_answers_are_read_and_never_clamped(answer, score):
    assert builtin("aurora").parse(answer) == (score, None if score is not None else "unparsable")


def test_unparsable_answers_stay_in_the_report(server, tmp_path):
    server.answer = lambda request: "no idea" if "move 1" in json.dumps(request) else '{"score": 4}'
    found = scored(JudgeScore(judge(server, tmp_path), "aurora"), [block_image(5)] * 3, rows(3))
    assert (found["judge"], found["judge_asked"], found["judge_unparsable"]) == (4, 3, 1)


def test_scales_and_actions(server, tmp_path):
    server.answer = lambda request: '{"score": 64}'
    assert scored(JudgeScore(judge(server, tmp_path), "bytemorph"), [block_image(5)], rows(1))["judge"] == 64
    server.answer = lambda request: '{"score": 3}'
    metric = JudgeScore(judge(server, tmp_path), "action")
    assert scored(metric, ["lift {it}"], rows(1))["judge"] == 3
    text = server.requests[-1]["messages"][0]["content"][0]["text"]
    assert "Reference action: move 0\nPredicted action: lift {it}\n" in text
    asked = len(server.requests)  # a template with the reference says nothing of a row without one
    bare = [Transition(block_image(0), None, "move 0", "r0", {"task": "kubric"})]
    assert scored(JudgeScore(judge(server, tmp_path), "bytemorph"), [block_image(5)], bare)["judge_asked"] == 0
    assert len(server.requests) == asked
    assert scored(JudgeScore(judge(server, tmp_path), "aurora"), [block_image(5)], bare)["judge"] == 3
    with pytest.raises(ValueError, match="no judge template 'x'"):
        JudgeScore(judge(server, tmp_path), "x")


def test_bad_settings(monkeypatch, tmp_path):
    with pytest.raises(ValueError, match="concurrency"):
        Judge("m", concurrency=0)
    for name, value in (("deadline", 0), ("timeout", float("nan")), ("backoff", float("inf")), ("temperature", -1)):
        with pytest.raises(ValueError, match=name):
            Judge("m", **{name: value})
    for address in ("localhost:80", "ftp://x/v1", "http://", "https://x/v1?key=1", "http://x:port/v1"):
        with pytest.raises(ValueError, match="base_url must be like https://"):
            Judge("m", address)
    with pytest.raises(ValueError, match="holds a name or password") as error:
        Judge("m", "https://me:precious@x/v1")
    assert "precious" not in str(error.value)
    monkeypatch.setenv("JUDGE_KEY", "schlüssel")
    with pytest.raises(ValueError, match="no request can carry"):
        Judge("m", api_key_env="JUDGE_KEY").check()
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
