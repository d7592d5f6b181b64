from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from support.suites.stabletoolbench import mirror, write
from support.text_suites import SAMPLES, bert_folder, evaluated, tiny_model, tiny_trainer

pytest.importorskip("nltk", reason="StableToolBench's metric needs nltk")

from swirl_lightning.benchmarks import stabletoolbench
from swirl_lightning.benchmarks.stabletoolbench import TEST_FILES, StableToolBench

REAL = SAMPLES / "stabletoolbench"


def call(query: str, action: Any, answer: Any, file: str = "run/1.json") -> dict[str, Any]:
    """A call in a run of the benchmark."""
    observation = answer if answer is None or isinstance(answer, str) else json.dumps(answer)
    return {
        "file": file,
        "query": query,
        "action": action,
        "action_input": '{\n "q": 1\n}',
        "observation": observation,
        "code": 0,
    }


@pytest.fixture
def folder(tmp_path) -> Path:
    root = tmp_path / "stable"
    write(root / "train_sft.json", [mirror(n) for n in range(12)])
    for number, name in enumerate(TEST_FILES.values()):
        write(root / name, [mirror(100 * number + n, error="no" if "fail" in name else "") for n in range(number + 1)])
    return root


def test_records_of_mirror_api(folder):
    data = StableToolBench(str(folder), validation_episodes=2)
    data.setup("fit")
    data.setup("test")
    sizes = {name: len(data.split(name)) for name in ("warmup", "state_only", "validation", "test")}
    assert sizes == {"warmup": 5, "state_only": 5, "validation": 2, "test": 15}
    row = data.split("test")[-1]
    assert row.before == "API doc:\n{'api_name': 'a404'}"
    assert row.action == "{'q': 404}"
    assert row.after == 'ERROR: no\nRESPONSE: {"n": 404}'
    assert (row.id, row.meta["split"]) == ("OOD-fail/4", "OOD-fail")
    assert data.counts["test"] == {"records": 15, "used": 15, "skipped": 0}


def test_a_request_is_what_stands_below_the_last_such_line(tmp_path):
    """Blank lines, however many, take no time that grows with their square."""
    words = "doc\n Request: \nfirst\n" + "\n" * 300_000 + "Request:\r\n call \n"
    broken = ["Request:\n call", "doc\nRequest:", "doc\nRequest: call\n", "doc\nRequest:\n \n"]
    write(tmp_path / "train_sft.json", [{**mirror(n), "instruction": w} for n, w in enumerate([words, *broken])])
    data = StableToolBench(str(tmp_path))
    with pytest.warns(UserWarning, match="4 of 5 records"):
        (row,) = data.read("train")
    assert row.action == "call"
    assert row.before == "doc\n Request: \nfirst"


def test_calls_carry_documentation_and_conversation(tmp_path):
    api = {"tool_name": "T", "api_name": "A", "required_parameters": [], "template_response": {"x": "str"}}
    write(tmp_path / "q.json", [{"query": "what?", "query_id": 1, "api_list": [api]}])
    calls = [
        call("what?", "a_for_t", {"error": "", "response": "one"}),
        call("who?", "b_for_t", {"error": "", "response": 2}, file="run/2.json"),
        call("what?", "b_for_t", '{"error": "e\\"", "response": "cut sho...'),
    ]
    write(tmp_path / "calls.jsonl", "\n".join(map(json.dumps, calls)))
    files = {"train_files": ["calls.jsonl"], "test_files": {"OOD": "calls.jsonl"}, "query_files": ["q.json"]}
    first, second, third = StableToolBench(str(tmp_path), **files).split("test")
    documentation = 'APIs:\n{"tool_name": "T", "api_name": "A", "required_parameters": []}'
    assert first.before == f"{documentation}\n\nQuery: what?"
    assert (first.action, first.after) == ('a_for_t {"q": 1}', "ERROR: \nRESPONSE: one")
    assert second.before == "Query: who?"
    assert third.before == f"{first.before}\n\nCall: {first.action}\n{first.after}"
    assert third.after == 'ERROR: e"\nRESPONSE: cut sho...'


@pytest.mark.parametrize("answer", [{"a": ["x y", 1, None], "ü": True}, 'a "quoted" line\nand \\ ü', [1], 2])
def test_an_answer_that_is_cut_short_begins_as_it_would_whole(answer):
    whole = json.dumps({"error": 'an "e"', "response": answer}, ensure_ascii=False)
    wanted = stabletoolbench._answer({"output": whole}, "output")
    for end in range(whole.index('"response": ') + 13, len(whole) - 1):
        assert wanted.startswith(stabletoolbench._answer({"output": whole[:end]}, "output"))


@pytest.mark.parametrize(
    ("written", "read"),
    [
        (r"it\'s here \q", r"it\'s here \q"),  # not JSON, though it is whole
        (r"smile \ud83d\ude00, \ud83d", "smile \U0001f600, "),
        (r"a \n \/ \\ \u00", "a \n / \\ "),
        ("a\\", "a"),
    ],
)
def test_odd_escapes_cost_no_record(written, read):
    answer = stabletoolbench._answer({"output": '{"error": "", "response": "' + written}, "output")
    assert answer == f"ERROR: \nRESPONSE: {read}"
    answer.encode()


def test_calls_that_name_no_run_are_told_apart_by_query_and_a_query_that_comes_again_is_told(tmp_path):
    api = {"tool_name": "T", "api_name": "A"}
    other = {"query": "what?", "api_list": [api | {"api_name": "B"}]}
    write(tmp_path / "q.json", [{"query": "what?", "api_list": [api]}, {"query": "what?", "api_list": [api]}, other])
    calls = [call(query, "a", {"error": "", "response": query}) for query in ("what?", "who?", "who?")]
    for each in calls:
        del each["file"]
    write(tmp_path / "calls.jsonl", "\n".join(map(json.dumps, calls)))
    data = StableToolBench(str(tmp_path), test_files={"OOD": "calls.jsonl"}, query_files=["q.json"])
    with pytest.warns(UserWarning, match=r"q\.json\[2\]: the query has come before with other APIs"):
        first, second, third = data.split("test")
    assert '"api_name": "A"' in first.before
    assert second.before == "Query: who?"
    assert third.before.startswith("Query: who?\n\nCall: ")


def test_a_run_has_no_more_calls_than_it_can(tmp_path):
    """Each holds all before it: a small file would fill the memory."""
    calls = [call("find it", f"find {n}", {"error": "", "response": n}) for n in range(250)]
    (tmp_path / "calls.json").write_text(json.dumps(calls))
    data = StableToolBench(str(tmp_path), test_files={"ID-high": "calls.json"}, train_files=[])
    with pytest.warns(UserWarning, match=r"50 of 250 records(.|\n)*has more than 200 calls"):
        assert len(data.split("test")) == 200


def test_end_to_end_by_split_and_as_the_mean_over_splits(folder, gemma_path, tmp_path):
    data = StableToolBench(str(folder), eval_batch_size=8, bert=str(bert_folder(tmp_path / "bert")))
    results = evaluated(data, gemma_path, tmp_path)
    assert data.missing_metrics == {}
    for metric in ("bleu_char", "bleu_word", "rouge_l", "bert_score"):
        by_split = [results[f"fwm/sampled/{metric}/{name}"] for name in TEST_FILES]
        assert results[f"fwm/sampled/{metric}"] == pytest.approx(sum(by_split) / 5)
    data = StableToolBench(str(folder), test_splits=["OOD"])
    results = evaluated(data, gemma_path, tmp_path)
    assert "fwm/sampled/bleu_char/OOD" in results
    assert "fwm/sampled/bleu_char/ID-high" not in results


def test_a_limit_is_spread_over_the_splits_and_told(folder, gemma_path, tmp_path):
    """Splits of 1 to 5 records: each has a place in the mean over splits."""
    data = StableToolBench(str(folder), limit=7)
    results = evaluated(data, gemma_path, tmp_path)
    chosen = ["ID-high/0", "ID-low/0", "ID-medium/0", "OOD/0", "OOD/2", "OOD-fail/0", "OOD-fail/2"]
    assert [row.id for row in data.split("test")] == chosen
    assert {f"fwm/sampled/bleu_char/{name}" for name in TEST_FILES} <= results.keys()
    told = {"records": 15, "used": 7, "skipped": 0, "left out by limit": 8}
    assert data.counts["test"] == told
    assert json.loads((tmp_path / "results.json").read_text())["about"]["test"]["base"]["counts"]["test"] == told
    assert [row.id for row in StableToolBench(str(folder), limit=5).split("test")] == [f"{n}/0" for n in TEST_FILES]
    for limit in range(1, 16):
        ids = [row.id for row in StableToolBench(str(folder), limit=limit).split("test")]
        assert len(set(ids)) == len(ids) == limit
    everything = StableToolBench(str(folder), limit=99)
    assert len(everything.split("test")) == 15
    assert everything.counts["test"] == {"records": 15, "used": 15, "skipped": 0}


BROKEN = [
    (mirror(1, instruction="API doc: x"), "instruction has no line 'Request:'"),
    (mirror(1, instruction="API doc: x\n\nRequest:\n "), "the request is empty"),
    (mirror(1, output="plain"), "output is no object with error and response"),
    (mirror(1, output='{"error": ""}'), "output is no object with error and response"),
    (mirror(1, output=None), "output must be a text"),
    (mirror(1, output="\udcff"), "half of a surrogate pair"),
    (call("q", None, None), "action must be a text"),
    (7, "an object is needed, got int"),
]


def test_broken_records_are_named_counted_and_the_rest_is_scored(folder, gemma_path, tmp_path):
    path = folder / TEST_FILES["OOD"]
    text = json.dumps([mirror(0), *(record for record, _ in BROKEN), mirror(2, "odd"), mirror(2), mirror(3)])
    path.write_bytes(text[:-30].encode().replace(b"odd", b"\xff"))
    data = StableToolBench(str(folder), test_splits=["OOD"])
    with pytest.warns(UserWarning, match=r"StableToolBench's test files: 10 of 12 records cannot be used") as caught:
        evaluated(data, gemma_path, tmp_path)
    message = next(str(w.message) for w in caught if "cannot be used" in str(w.message))
    for number, (_, reason) in enumerate(BROKEN, start=1):
        assert f"ood.json[{number}]: " in message
        assert reason in message
    assert "ood.json[9]: not JSON ('utf-8' codec can't encode" in message
    assert "ood.json[11]: not JSON, nothing is read from here on" in message
    counts = data.counts["test"]
    assert [counts.pop(name) for name in ("records", "used", "skipped")] == [12, 2, 10]
    assert sum(counts.values()) == 10
    module = tiny_model(gemma_path)
    with pytest.raises(ValueError, match=r"ood\.json\[1\]: instruction has no line"):
        tiny_trainer(tmp_path).test(module, datamodule=StableToolBench(str(folder), strict=True))
    assert module.model is None


def test_missing_files_and_unknown_splits(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"5 of 5 files are missing:(.|\n)*MirrorAPI-Bench"):
        StableToolBench(str(tmp_path / "none")).setup("test")
    (folder / "train_sft.json").unlink()
    StableToolBench(str(folder)).setup("test")
    with pytest.raises(FileNotFoundError, match=r"1 of 1 files are missing:\n.*train_sft\.json"):
        StableToolBench(str(folder)).setup("fit")
    with pytest.raises(FileNotFoundError, match=r"1 of 6 files are missing:\n.*q\.json"):
        StableToolBench(str(folder), query_files=["q.json"]).setup("test")
    with pytest.raises(ValueError, match=r"unknown StableToolBench test splits \['ID'\]; choose from \['ID-high'"):
        StableToolBench(str(folder), test_splits=["ID"])


@pytest.mark.skipif(not REAL.is_dir(), reason="no samples of StableToolBench beside the repository")
def test_real_calls(gemma_path, tmp_path):
    data = StableToolBench(
        str(REAL),
        test_files={"ID-high": "calls.jsonl"},
        train_files=["calls.jsonl"],
        query_files=["G1_instruction.json"],
        limit=3,
        validation_episodes=2,
    )
    data.setup("fit")
    data.setup("test")
    # eleven records are a model's final words, no calls
    kinds = {"skipped: action must be a text that is not empty": 11}
    assert data.counts["test"] == {"records": 120, "used": 3, "skipped": 11, "left out by limit": 106} | kinds
    rows = [row for name in ("warmup", "state_only", "validation") for row in data.split(name)]
    assert len(rows) == 109
    assert all(row.after.startswith("ERROR: ") and "\nRESPONSE: " in row.after for row in rows)
    assert sum(row.before.startswith("APIs:\n") for row in rows) > 20
    assert any("\n\nCall: " in row.before for row in rows)
    assert 0 <= evaluated(data, gemma_path, tmp_path)["fwm/sampled/bleu_char/ID-high"] < 50


@pytest.mark.parametrize("depth", [200, 50_000])
def test_deep_nesting_costs_its_record_alone(tmp_path, depth):
    """In the file itself, and in the JSON that a text of it holds."""
    deep = "[" * depth + "]" * depth
    answer = f'{{"error": "", "response": {deep}}}'
    lines = [
        json.dumps(mirror(1)),
        json.dumps(mirror(2, output=answer)),
        json.dumps(mirror(3))[:-1] + f', "x": {deep}}}',
    ]
    lines += [
        json.dumps(call("who?", "b", {"error": "", "response": 1}) | {"action_input": deep}),
        json.dumps(mirror(4)),
    ]
    write(tmp_path / "calls.json", f"[{', '.join(lines)}]")
    with pytest.warns(UserWarning, match=r"3 of 5 records cannot be used \(3 nested deeper than 100 levels\)"):
        rows = StableToolBench(str(tmp_path), test_files={"OOD": "calls.json"}).split("test")
    assert [row.action for row in rows] == ["{'q': 1}", "{'q': 4}"]
    write(tmp_path / "q.json", f'[{{"query": "who?", "api_list": [{{"method": {deep}}}]}}]')
    data = StableToolBench(str(tmp_path), test_files={"OOD": "calls.json"}, query_files=["q.json"])
    with pytest.warns(UserWarning, match=r"q\.json\[0\]: nested deeper"):
        assert len(data.split("test")) == 2
