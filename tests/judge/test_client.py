"""The judge against a real HTTP server on localhost."""

from __future__ import annotations

import asyncio
import base64
import gzip
import io
import json
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from jsonargparse import ArgumentParser
from PIL import Image

from support.image_world import block_image, liquid_folder, model, trainer, write_aurora
from support.judge_server import KEY, body, completion, serving
from swirl_lightning.benchmarks.aurora import Aurora
from swirl_lightning.data import TransitionDataModule
from swirl_lightning.judge import Judge
from swirl_lightning.judge.endpoint import Endpoint, Unanswered, _MayPass
from swirl_lightning.judge.metric import JudgeScore
from swirl_lightning.judge.templates import builtin
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
    return [Transition(block_image(n), block_image(n + 90), f"move {n}", f"r{n}", {"task": task}) for n in range(count)]


def scored(metric, predicted, transitions):
    metric.update(predicted, transitions)
    metric.sync()  # what Lightning does first
    return {k: float(v) for k, v in metric.compute().items()}


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


def test_retries_until_the_server_is_well(server, tmp_path):
    server.script = [429, 503, 500]
    found = scored(JudgeScore(judge(server, tmp_path, retries=3), "aurora"), [block_image(5)], rows(1))
    assert found["judge"] == 7
    assert len(server.requests) == 4


def test_more_attempts_than_a_float_can_double(monkeypatch):
    async def fail(*_):
        raise _MayPass("no connection")

    monkeypatch.setattr(Endpoint, "_attempt", fail)
    monkeypatch.setenv("KEY", "any")
    endpoint = Endpoint("http://localhost", "KEY", timeout=1, retries=1100, backoff=0.0, deadline=60)
    with pytest.raises(Unanswered, match="no connection"):
        asyncio.run(endpoint.ask({}))


def test_a_slow_server_is_not_waited_for(server, tmp_path):
    server.delay = 4
    found = scored(JudgeScore(judge(server, tmp_path, timeout=1, retries=1), "aurora"), [block_image(5)], rows(1))
    assert found["judge_failed"] == 1
    assert "judge" not in found
    assert len(server.requests) == 2


def test_a_refusal_stops_with_a_reason_and_without_the_key(server, tmp_path, capfd):
    server.script = [401]
    metric = JudgeScore(judge(server, tmp_path), "aurora")
    metric.update([block_image(5)], rows(1))
    with pytest.raises(ValueError, match=r"refuses \(401\)") as error:
        metric.collect()
    assert KEY not in str(error.value)
    assert len(server.requests) == 1  # not retried


@pytest.mark.parametrize("key", ["gsk_dF9xQ2Lw7TzB", "a/b+c=d e'f\\g", "0123456789abcdef"])
def test_no_word_of_a_server_has_the_key(server, tmp_path, monkeypatch, key):
    monkeypatch.setenv("JUDGE_KEY", f" {key}\n")
    told = f"Bearer {key} is wrong; {key[:9]}... is, too"
    for status, content in [(401, {"error": {"message": told}}), (403, {"other": told}), (404, told.encode())]:
        server.script = [body(content, status)]
        metric = JudgeScore(judge(server, tmp_path), "aurora")
        metric.update([block_image(5)], rows(1))
        with pytest.raises(ValueError, match=rf"refuses \({status}\)") as error:
            metric.collect()
        assert not any(key[n : n + 8] in str(error.value) for n in range(len(key) - 7))
    server.script = [body({"error": {"message": told}}, 400), body(completion(f'{told} {{"score": 3}}'))]
    with pytest.warns(UserWarning, match="no answer to 1 of 2 questions") as caught:
        found = scored(JudgeScore(judge(server, tmp_path, concurrency=1), "aurora"), [block_image(5)] * 2, rows(2))
    assert (found["judge"], found["judge_failed"]) == (3, 1)
    assert not any(key in str(warning.message) for warning in caught)
    (kept,) = (tmp_path / "cache").rglob("*.json")
    assert key not in json.loads(kept.read_text())["answer"]


@pytest.mark.parametrize("key", ["sk-proj-AAAABBBBCCCC1111", "gsk_abcDEF123", "AIzaSyAbc", ""])
def test_a_key_in_place_of_its_variables_name_is_not_shown(key):
    with pytest.raises(ValueError, match=r"not the key itself") as error:
        Endpoint(None, key, 1, 1, 1, 1).check()
    assert not key or key not in str(error.value)


def test_an_address_has_no_blanks_and_may_be_that_of_the_questions():
    with pytest.raises(ValueError, match="judge: base_url must be like"):
        Endpoint("http://h /v1", "KEY", 1, 1, 1, 1)
    one, other = (Endpoint(f"http://h/v1{end}", "KEY", 1, 1, 1, 1).url for end in ("", "/chat/completions"))
    assert one == other == "http://h/v1/chat/completions"


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


NO_COMPLETION = {
    "null": b"null",
    "a list": b"[]",
    "a number": b"7",
    "no JSON": b"<html>busy</html>",
    "no UTF-8": b'{"choices": "\xff"}',
    "nothing": b"",
    "very deep": b"[" * 100_000,
    "no choices": {"choices": None},
    "empty choices": {"choices": []},
    "choices of another kind": {"choices": {"0": 1}},
    "no message": {"choices": [{"message": None}]},
    "no content": completion(None),
    "content of another kind": completion({"score": 7}),
    "blank content": completion("  "),
}


@pytest.mark.parametrize("content", NO_COMPLETION.values(), ids=NO_COMPLETION)
def test_what_is_no_completion_is_asked_again_and_never_kept(server, tmp_path, content):
    server.script = [body(content)] * 2
    with pytest.warns(UserWarning, match=r"no answer to 1 of 1 questions:\n  1: the answer "):
        found = scored(JudgeScore(judge(server, tmp_path, retries=1), "aurora"), [block_image(5)], rows(1))
    assert (found["judge_failed"], found["judge_unparsable"], len(server.requests)) == (1, 0, 2)
    server.script = [body(content)]
    assert scored(JudgeScore(judge(server, tmp_path, retries=1), "aurora"), [block_image(5)], rows(1))["judge"] == 7


def test_an_answer_without_a_score_is_not_kept(server, tmp_path):
    deep = '{"score": ' + "[" * 10_000 + "}"
    server.script = [body(completion(text)) for text in ("upstream error", deep, '{"score": 11}')]
    for _ in range(3):
        found = scored(JudgeScore(judge(server, tmp_path), "aurora"), [block_image(5)], rows(1))
        assert found["judge_unparsable"] == 1
    assert scored(JudgeScore(judge(server, tmp_path), "aurora"), [block_image(5)], rows(1))["judge"] == 7


@pytest.mark.parametrize("usage", [None, [], {"prompt_tokens": 10**30}, {"prompt_tokens": -1}, {"prompt_tokens": "9"}])
def test_usage_of_any_shape_costs_no_answer(server, tmp_path, usage):
    server.script = [body(completion('{"score": 3}') | {"usage": usage})]
    found = scored(JudgeScore(judge(server, tmp_path), "aurora"), [block_image(5)], rows(1))
    assert (found["judge"], found["judge_prompt_tokens"]) == (3, 0)


@pytest.mark.parametrize("start", [b"HTTP/1.1 200 OK\r\nX-Long: ", b"HTTP/1.1 200 OK\r\n\r\n", b""])
def test_a_server_that_drips_holds_no_question_beyond_its_time(server, tmp_path, start):
    def drip(handler):
        handler.wfile.write(start)
        for _ in range(60):
            handler.wfile.write(b"x")
            handler.wfile.flush()
            time.sleep(0.1)

    server.script = [drip] * 2
    began = time.monotonic()
    with pytest.warns(UserWarning, match="no whole answer within 0.4 s"):
        found = scored(JudgeScore(judge(server, tmp_path, timeout=0.4, retries=1), "aurora"), [block_image(5)], rows(1))
    assert (found["judge_failed"], len(server.requests)) == (1, 2)
    assert time.monotonic() - began < 4


@pytest.mark.parametrize("status", [200, 401, 500])
def test_a_body_without_end_is_not_read(server, tmp_path, status):
    sent = [0]

    def flood(handler):
        handler.wfile.write(f"HTTP/1.1 {status} X\r\n\r\n".encode())
        while sent[0] < 600:
            handler.wfile.write(b" " * 2**20)
            sent[0] += 1

    server.script = [flood]
    with pytest.warns(UserWarning, match="a body of more than"):
        scored(JudgeScore(judge(server, tmp_path, retries=0, timeout=60), "aurora"), [block_image(5)], rows(1))
    assert sent[0] < 60


def test_a_compressed_bomb_is_not_unpacked(server, tmp_path):
    server.script = [body(gzip.compress(b" " * 2**26), Content_Encoding="gzip")]
    with pytest.warns(UserWarning, match="the answer is no chat completion"):
        scored(JudgeScore(judge(server, tmp_path, retries=0), "aurora"), [block_image(5)], rows(1))


def test_no_redirect_takes_the_key_elsewhere(server, tmp_path):
    server.script = [body(b"", 307, Location=server.url + "/elsewhere")]
    metric = JudgeScore(judge(server, tmp_path), "aurora")
    metric.update([block_image(5)], rows(1))
    with pytest.raises(ValueError, match=r"refuses \(307\)"):
        metric.collect()
    assert len(server.requests) == 1


def test_a_redirect_to_nowhere_costs_one_question(server, tmp_path):
    server.script = [body(b"", 307, Location="//:80")]
    assert scored(JudgeScore(judge(server, tmp_path), "aurora"), [block_image(5)], rows(1))["judge"] == 7  # asked again


@pytest.mark.parametrize("date", [False, True])
def test_a_server_is_given_the_time_that_it_asks_for(server, tmp_path, date):
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=3), usegmt=True)
    server.script = [body(b"", 429, Retry_After=later if date else "1")]
    began = time.monotonic()
    assert scored(JudgeScore(judge(server, tmp_path), "aurora"), [block_image(5)], rows(1))["judge"] == 7
    assert time.monotonic() - began >= 1


def test_a_question_ends_with_its_deadline(server, tmp_path):
    server.script = [body(b"", 429, Retry_After="86400")]
    began = time.monotonic()
    with pytest.warns(UserWarning, match="1: HTTP 429"):
        scored(JudgeScore(judge(server, tmp_path), "aurora"), [block_image(5)], rows(1))
    assert (len(server.requests), time.monotonic() - began < 5) == (1, True)
    server.script = [body(b"", 503, Retry_After="soon")] * 99
    with pytest.warns(UserWarning, match="1: HTTP 503"):
        scored(
            JudgeScore(judge(server, tmp_path, retries=98, backoff=0.8, deadline=4), "aurora"),
            [block_image(5)],
            rows(1),
        )
    assert 2 <= len(server.requests) - 1 <= 5


def test_at_most_so_many_at_a_time(server, tmp_path):
    server.delay = 0.05
    scored(JudgeScore(judge(server, tmp_path, concurrency=3), "aurora"), [block_image(5)] * 12, rows(12))
    assert server.most == 3


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
