"""What servers do to the judge's questions, by a real one on localhost."""

from __future__ import annotations

import asyncio
import gzip
import json
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from support.image_world import block_image
from support.judge_server import body, completion
from support.judged import judge, rows, scored
from swirl_lightning.judge.endpoint import Endpoint, Unanswered, _MayPass
from swirl_lightning.judge.metric import JudgeScore


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
