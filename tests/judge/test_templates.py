"""Templates of the judge are files; results and reports tell which one gave a score."""

from __future__ import annotations

import json

import pytest

from support.image_world import block_image
from support.judge_server import KEY, serving
from swirl_lightning.judge import Judge
from swirl_lightning.judge.metric import JudgeScore
from swirl_lightning.judge.templates import BUILTIN, builtin, read_template
from swirl_lightning.results.report import build
from swirl_lightning.transition import Transition

CHECKOUT = '''
import missing_package

if __name__ == "__main__":
    WORDING = """Rate it.
    { "Score": xx }"""
    ITEM = "EDIT TEXT: " + str(1)
'''


def write(folder, text, name="own.yaml"):
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


@pytest.fixture
def official(tmp_path):
    """A template that points into a checkout, as docs/metrics.md shows."""
    write(tmp_path, CHECKOUT, "gpt_eval.py")
    return write(
        tmp_path,
        "system: {file: gpt_eval.py, name: WORDING}\n"
        "text: ['EDIT TEXT: {action}', 'Rate {what}.']\n"
        "states: [before, predicted]\nlow: 0\nhigh: 100\nseveral: min\npaper: true\nsource: a checkout\n",
    )


def test_our_own_are_files_with_hashes_of_their_own():
    names = sorted(path.stem for path in BUILTIN.glob("*.yaml"))
    assert names == ["action", "aurora", "bytemorph", "gedit", "quality", "worldprediction"]
    found = [builtin(name) for name in names]
    assert not any(template.paper for template in found)
    assert [(t.low, t.high, t.states) for t in found] == [
        (0, 10, ("before", "after")),
        (0, 10, ("before", "predicted")),
        (0, 100, ("before", "predicted", "after")),
        (0, 10, ("before", "predicted")),
        (0, 10, ("predicted",)),
        (0, 10, ("before", "predicted")),
    ]
    assert builtin("aurora").digest == builtin("worldprediction").digest  # the same question
    assert len({t.digest for t in found}) == 5


def test_the_wording_of_a_checkout_is_read_and_not_run(official):
    template = read_template(official)
    assert template.system == 'Rate it.\n    { "Score": xx }'
    assert template.fill(action="go {left}", predicted="") == "EDIT TEXT: go {left}\nRate {what}."
    other = read_template(write(official.parent, official.read_text().replace("min", "first"), "other.yaml"))
    assert template.digest != other.digest
    again = read_template(write(official.parent, official.read_text().replace("a checkout", "x"), "again.yaml"))
    assert template.digest == again.digest


@pytest.mark.parametrize(
    ("several", "answer", "score"),
    [
        ("min", '{"score": [8, 3], "reasoning": "x"}', 3),
        ("first", '{"score": [8, 3]}', 8),
        ("last", '{"score": ["8", 3.5]}', 3.5),
        ("min", '{"score": 6}', 6),
        ("min", '{"score": [8, 300]}', None),
        ("min", '{"score": []}', None),
        (None, '{"score": [8, 3]}', None),
    ],
)
def test_several_scores_make_one(official, several, answer, score):
    text = official.read_text().replace("several: min\n", f"several: {several}\n" if several else "")
    template = read_template(write(official.parent, text))
    assert template.parse(answer) == (score, None if score is not None else "unparsable")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (("low: 0", "low: x"), "low and high must be numbers"),
        (("high: 100\n", ""), "has no high"),
        (("[before, predicted]", "[before, picture]"), "states must be a list of some of"),
        (("high: 100", "high: .inf"), "low and high must be numbers"),
        (("several: min", "several: max"), "several must be one of"),
        (("several: min", "several: [min]"), "several must be one of"),
        (("source", "sauce"), "no field 'sauce'"),
        (("WORDING", "ITEM"), "no text is assigned to ITEM; copy the wording"),
        (("name: WORDING", "from: WORDING"), "system must be a text"),
        (("low: 0", "low: [0"), "is no YAML"),
    ],
)
def test_a_broken_template_is_named_before_anything_runs(official, change, told):
    path = write(official.parent, official.read_text().replace(*change))
    with pytest.raises(ValueError, match=rf"{path.parent}.*{told}"):
        Judge("any", template=str(path))
    with pytest.raises(FileNotFoundError, match="none"):
        Judge("any", action_template="none")


def test_the_judge_is_asked_in_the_words_of_the_file(official, tmp_path, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", KEY)
    with serving() as server:
        server.answer = lambda request: '{"score": [90, 40]}'
        own = {"api_key_env": "JUDGE_KEY", "cache_dir": str(tmp_path / "cache")}
        judge = Judge("gpt-4o", server.url, template=str(official), **own)
        metric = JudgeScore(judge, "bytemorph")
        metric.update([block_image(5)], [Transition(block_image(0), None, "turn", "r")])
        metric.sync()
        assert float(metric.compute()["judge"]) == 40
        system, asked = server.requests[0]["messages"]
        assert system == {"role": "system", "content": 'Rate it.\n    { "Score": xx }'}
        assert asked["content"][0]["text"] == "EDIT TEXT: turn\nRate {what}."
        assert len(asked["content"]) == 3
    told = judge.settings({"state": "bytemorph", "action": "action"})["templates"]
    assert told["state"] == {
        "name": str(official),
        "hash": read_template(official).digest,
        "paper": True,
        "source": "a checkout",
    }
    assert told["action"]["name"] == "swirl-lightning/action"


def results(folder, model, **templates):
    settings = {"judge": {"model": model, "templates": templates}}
    facts = {"label": "SFT", "suite": "AURORA", "settings": settings}
    rows = {"test": {"SFT": {"fwm/sampled/judge": 4.0}}, "about": {"test": {"SFT": facts}}}
    folder.mkdir()
    (folder / "results.json").write_text(json.dumps(rows))
    return folder / "results.json"


PAPER = {"name": "theirs.yaml", "hash": "ab12", "paper": True, "source": "a checkout"}


def test_the_papers_number_is_no_bar_for_another_template_or_model(tmp_path):
    ours = builtin("aurora").facts()
    runs = {
        "same": results(tmp_path / "same", "gpt-4o-2024-08-06", state=PAPER),
        "other words": results(tmp_path / "other words", "gpt-4o", state=ours),
        "other model": results(tmp_path / "other model", "gpt-4o-mini", state=PAPER),
        "older": results(tmp_path / "older", "gpt-4o"),
    }
    for name, path in runs.items():
        report, *_ = build([path])
        shown = report.rows["SFT (paper)"][report.heading.index("judge 0-10")]
        assert shown == ("4.36" if name == "same" else "4.36†")
        assert any(note.startswith("† other template") for note in report.notes) == (name != "same")
    report, *_ = build([runs["same"]])
    assert "SFT: states judged by gpt-4o-2024-08-06, template theirs.yaml (ab12, from a checkout)" in report.notes
    both, *_ = build([runs["same"], runs["other words"]])
    assert both.rows["SFT (paper)"][both.heading.index("judge 0-10")] == "4.36†"
    assert f"other words: SFT: states judged by gpt-4o, template swirl-lightning/aurora ({ours['hash']})" in both.notes
    older, *_ = build([runs["older"]])
    assert "SFT: states judged by gpt-4o, template unknown (no hash)" in older.notes
