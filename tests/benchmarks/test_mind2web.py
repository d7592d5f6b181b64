from __future__ import annotations

import json
import re
import time
from html.parser import HTMLParser
from pathlib import Path

import pytest

from support.suites.mind2web import page, task, write
from support.text_suites import evaluated, tiny_model, tiny_trainer

pytest.importorskip("lxml", reason="Mind2Web needs lxml")

from swirl_lightning.benchmarks.mind2web import Mind2Web
from swirl_lightning.benchmarks.mind2web.html_pruning import CUT, VOID, prune


@pytest.fixture
def folder(tmp_path) -> Path:
    root = tmp_path / "mind2web" / "data"
    write(root / "train" / "train_0.json", [task(f"a{n}") for n in range(4)])
    write(root / "train" / "train_1.json", [task(f"b{n}", website="bank") for n in range(5)])
    write(root / "train" / "train_10.json", [task("c", 1)])
    for split in ("task", "website", "domain"):
        write(root / f"test_{split}" / f"test_{split}_0.json", [task(f"{split}{n}", n + 2) for n in range(2)])
    return root.parent


# ---- the suite -----------------------------------------------------------------------------------
def test_transitions_and_splits(folder):
    data = Mind2Web(str(folder), validation_episodes=1)
    data.setup("fit")
    data.setup("test")
    rows = {name: data.split(name) for name in ("warmup", "state_only", "validation", "test")}
    assert {name: len(found) for name, found in rows.items()} == {
        "warmup": 8,
        "state_only": 8,
        "validation": 2,
        "test": 9,
    }
    episodes = [{row.meta["episode"] for row in found} for found in rows.values()]
    assert sum(map(len, episodes)) == len(set.union(*episodes)) == 9 + 6
    row = rows["test"][0]
    assert (row.id, row.action) == ("test_task/task0/0", "[button]  b0 -> CLICK")
    assert '<p id="x">task0 0</p>' in row.before
    assert '<p id="x">task0 1</p>' in row.after
    assert "backend_node_id" not in row.before


def test_subsets(folder):
    data = Mind2Web(str(folder / "data"), test_splits=["test_domain"], websites=["bank"])
    data.validation_episodes = 0
    assert {row.meta["website"] for row in data.split("warmup")} == {"bank"}
    with pytest.raises(ValueError, match=r"unknown Mind2Web websites \['bank'\]; the test files have:\n  "):
        data.split("test")  # its tasks are on another website
    with pytest.warns(UserWarning, match=r"unknown Mind2Web domains \['Travle'\]; the test files have"):
        assert Mind2Web(str(folder), domains=["Shopping", "Travle"]).split("test")
    assert len(Mind2Web(str(folder), test_splits=["test_domain"], limit=2).split("test")) == 2
    spread = Mind2Web(str(folder), limit=4)
    first = ["test_task/task0/0", "test_website/website0/0", "test_domain/domain0/0", "test_domain/domain1/0"]
    assert [row.id for row in spread.split("test")] == first
    with pytest.raises(ValueError, match=r"unknown Mind2Web test splits \['test'\]"):
        Mind2Web(str(folder), test_splits=["test"])
    with pytest.raises(ValueError, match=r"unknown Mind2Web domains \['Sea'\]; the train files have:\n  Shopping"):
        Mind2Web(str(folder), domains=["Sea"]).setup("fit")
    with pytest.raises(ValueError, match=r"page_budget must lie in \[1, inf\)"):
        Mind2Web(str(folder), page_budget=0)


def test_missing_files_are_counted_and_named(tmp_path, gemma_path):
    module = tiny_model(gemma_path)
    with pytest.raises(FileNotFoundError, match=r"3 of 3 files are missing:\n.*test_domain_0\.json(.|\n)*osunlp"):
        tiny_trainer(tmp_path).test(module, datamodule=Mind2Web(str(tmp_path / "none")))
    assert module.model is None


def test_end_to_end_with_broken_data(folder, gemma_path, tmp_path):
    """Truncated JSON, an empty action, a 2 MB page and text that is no UTF-8."""
    root = folder / "data"
    big = task("big", 2)
    for number, step in enumerate(big["actions"]):
        step["cleaned_html"] = page(f"new {number}", rows=50_000)
    assert len(big["actions"][0]["cleaned_html"]) > 2_000_000
    empty = {**task("empty", 3), "action_reprs": ["[a]  b -> CLICK", " ", "[a]  c -> CLICK"]}
    short = {**task("short", 3), "action_reprs": ["[a]  b -> CLICK"]}
    pageless = task("pageless", 3)
    del pageless["actions"][1]["cleaned_html"]
    odd = [big, empty, short, pageless, "text", task("odd", 2)]
    write(root / "test_task" / "test_task_0.json", json.dumps(odd).encode().replace(b"odd 0", b"odd \xff"))
    whole = json.dumps([task("whole", 2), task("lost", 2)])
    write(root / "test_website" / "test_website_0.json", whole[: whole.index("lost") + 200])
    write(root / "test_domain" / "test_domain_0.json", '{"not": "a list"}')
    data = Mind2Web(str(folder), page_budget=300)
    start = time.process_time()
    with pytest.warns(UserWarning, match=r"Mind2Web's test files: 8 of 11 records cannot be used") as caught:
        results = evaluated(data, gemma_path, tmp_path)
    assert time.process_time() - start < 60
    message = next(str(w.message) for w in caught if "cannot be used" in str(w.message))
    for reason in (
        "test_task_0.json[1], step 1: action must be a text that is not empty",
        "test_task_0.json[2]: action_reprs and actions must be lists of the same length",
        "test_task_0.json[3], step 0: cleaned_html must be a text",
        "test_task_0.json[3], step 1: cleaned_html must be a text",
        "test_task_0.json[4]: an object is needed, got str",
        "test_task_0.json[5]: not JSON ('utf-8' codec can't encode",
        "test_website_0.json[1]: not JSON, nothing is read from here on",
        "test_domain_0.json: a JSON list is needed",
    ):
        assert reason in message
    rows = data.split("test")
    assert [row.id for row in rows] == ["test_task/big/0", "test_task/empty/0", "test_website/whole/0"]
    assert all(len(state) <= 300 for row in rows for state in (row.before, row.after))
    assert "new 0" in rows[0].before
    assert "new 1" in rows[0].after
    for name in ("element_accuracy", "operation_f1", "step_success"):
        assert 0 <= results[f"idm/sampled/{name}"] <= 1
        assert 0 <= results[f"idm/sampled/{name}/test_website"] <= 1
    assert "fwm/sampled/rouge_l/test_task" in results
    assert "fwm/sampled/rouge_l/test_domain" not in results
    with pytest.raises(ValueError, match=r"test_task_0\.json\[1\], step 1: action must be"):
        Mind2Web(str(folder), strict=True).setup("test")


def test_a_budget_in_tokens(folder, gemma_path):
    data = Mind2Web(str(folder), page_budget=90, tokenizer=str(gemma_path))
    in_tokens = [row.after for row in data.split("test")]
    in_characters = [row.after for row in Mind2Web(str(folder), page_budget=90).split("test")]
    assert in_tokens == in_characters  # a token is a byte here


# ---- pruning -------------------------------------------------------------------------------------
class Balanced(HTMLParser):
    """Fails on a tag that is not closed in its place."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag, attrs):
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def well_formed(text: str) -> bool:
    parser = Balanced()
    parser.feed(text)
    parser.close()
    return not parser.open and not re.search(r"<[^>]*$", text)


def test_what_fits_is_kept_whole():
    source = '<html><body>u<i>v</i>w<!-- c -->x<img src="a&amp;b"> &lt;1 <b>two</b> end</body></html>'
    before, after = prune(source, source.replace("two", "three"), 1000)
    assert before == '<html><body>u<i>v</i>wx<img src="a&amp;b"> &lt;1 <b>two</b> end</body></html>'
    assert after == before.replace("two", "three")


@pytest.mark.parametrize("budget", [1, 30, 60, 100, 200, 400, 1000, 3000])
def test_every_budget_is_kept_and_no_tag_is_cut(budget):
    one, other = page("old <b>text</b> &amp; more", 40), page("new <b>text</b> &amp; more", 40)
    results = prune(one, other, budget)
    assert results == prune(one, other, budget)
    for text in results:
        assert len(text) <= budget
        assert well_formed(text)
    assert (budget < 120) or ("old" in results[0] and "new" in results[1])


def test_what_changed_and_what_is_near_it_comes_first():
    one = "<body>" + "".join(f"<p>line {n}</p>" for n in range(500)) + "</body>"
    before, after = prune(one, one.replace("line 250<", "line 250, new<"), 200)
    assert re.findall(r"line \d+(?:, new)?", after)[:1] != ["line 0"]
    assert {"line 249", "line 251"} <= set(re.findall(r"line \d+", after))
    assert "line 250, new" in after
    assert "line 250<" in before


def test_equal_pages_are_kept_from_the_beginning():
    one = "<body>" + "".join(f"<p>line {n}</p>" for n in range(500)) + "</body>"
    before, after = prune(one, one, 200)
    assert before == after
    assert before.startswith("<html><body><p>line 0</p><p>line 1</p>")


def test_a_long_text_is_cut_between_characters():
    before, _ = prune("<p>" + "ä&" * 5000 + "</p>", "<p>b</p>", 4000)
    assert before.startswith("<html><body><p>ä&amp;ä")
    assert before.endswith(CUT + "</p></body></html>")
    assert len(before) <= 4000


@pytest.mark.parametrize(
    "source", ["just text", "<p", "\0<p>a", "<?xml version='1.0' encoding='x'?><p>a", "<p:q r:s='1'>a"]
)
def test_broken_html_becomes_well_formed(source):
    assert all(well_formed(text) for text in prune(source, source + "<i>n", 500))


def test_deep_pages_and_empty_ones():
    deep = "<div>" * 3000 + "{}" + "</div>" * 3000
    assert all(well_formed(text) for text in prune(deep.format("x"), deep.format("y"), 4000))
    with pytest.raises(ValueError, match="no HTML"):
        prune(" ", "<p>a</p>", 100)
