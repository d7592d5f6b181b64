from __future__ import annotations

import math
import random
import sys

import pytest
import torch
from torchmetrics import MetricCollection

from swirl_lightning.metrics.exact_match import ExactMatch
from swirl_lightning.metrics.text import BLEU, RougeL, lcs_length, rouge_l
from swirl_lightning.transition import Transition

nltk = pytest.importorskip("nltk", reason="BLEU needs nltk")


def rows(*after: str, split: str = "a") -> list[Transition]:
    return [Transition("x", y, "z", meta={"split": split}) for y in after]


def value(metric, predicted, transitions, key=None) -> float:
    metric.update(predicted, transitions)
    return float(metric.compute()[key or metric.name])


# ---- BLEU ----------------------------------------------------------------------------------------
def test_bleu_by_hand():
    # by characters: 1-grams 4/5, 2-grams 3/4, 3-grams 2/3, 4-grams 1/2, equal lengths
    by_hand = 100 * (4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25
    assert value(BLEU(), ["abcdX"], rows("abcdY")) == pytest.approx(by_hand)
    # by words: 3/4, 2/3, 1/2; no 4-gram matches, so method 3 gives the first zero half a count
    by_hand = 100 * (3 / 4 * 2 / 3 * 1 / 2 * (1 / 2) / 1) ** 0.25
    assert value(BLEU("bleu_word", "word"), ["a b c X"], rows("a b c Y")) == pytest.approx(by_hand)
    # brevity: five of ten characters, all of them right
    assert value(BLEU(), ["abcde"], rows("abcdefghij")) == pytest.approx(100 * math.exp(1 - 10 / 5))


def test_bleu_is_the_official_formula():
    from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu

    texts = ['ERROR: \nRESPONSE: {"a": 1}', "ERROR: x\nRESPONSE: ", "ERROR: \nRESPONSE: ünï", "a", "ab"]
    official = [
        sentence_bleu([list(y)], list(x), smoothing_function=SmoothingFunction().method3)
        for x, y in zip(texts, reversed(texts), strict=True)
    ]
    assert value(BLEU(), texts, rows(*reversed(texts))) == pytest.approx(100 * sum(official) / len(official))


@pytest.mark.parametrize("make", [BLEU, lambda: BLEU("bleu_word", "word"), RougeL])
def test_missing_and_empty_outputs_are_failures(make):
    metric = make()
    predicted = ["one two three four", "", "  \n", None]
    best = 1 if metric.name == "rouge_l" else 100
    assert value(metric, predicted, rows(*["one two three four"] * 4)) == pytest.approx(best / 4)


def test_bleu_without_nltk_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "nltk", None)
    with pytest.raises(ImportError, match=r"pip install 'swirl-lightning\[text\]'"):
        BLEU()
    with pytest.raises(ValueError, match="'char' or 'word', got 'line'"):
        BLEU(unit="line")


# ---- ROUGE-L -------------------------------------------------------------------------------------
def test_rouge_by_hand():
    # LCS "the cat on mat" = 4 of 5 and of 6 words
    assert rouge_l("The cat is on mat", "the cat, sat on the mat!") == pytest.approx(2 * 4 / 11)
    assert rouge_l("a", "a") == 1
    assert rouge_l("a", "b") == rouge_l("", "b") == rouge_l("a", "") == rouge_l("ü", "ü") == 0


def test_rouge_equals_the_rouge_score_package():
    scorer = pytest.importorskip("rouge_score.rouge_scorer").RougeScorer(["rougeL"])
    draw = random.Random(0)
    for _ in range(50):
        one, other = (" ".join(draw.choices(["A", "b-c", "d_1", "ee.", "é"], k=draw.randrange(1, 90))) for _ in "12")
        assert rouge_l(one, other) == pytest.approx(scorer.score(other, one)["rougeL"].fmeasure, abs=1e-12)


def test_lcs_of_long_texts():
    words = [str(n) for n in range(3000)]
    assert lcs_length(words, words[::2]) == 1500
    assert lcs_length(words, words[::-1]) == 1


# ---- means ---------------------------------------------------------------------------------------
def test_categories_of_one_and_of_none_and_macro_means():
    kinds = {"a": "a", "b": "b", "c": "c"}
    metric = RougeL(group_by="split", categories=kinds, macro=True)
    metric.update(["1", "1", "1"], rows("1", "2", "1", split="a"))
    metric.update([None], rows("1", split="b"))
    result = {key: float(number) for key, number in metric.compute().items()}
    assert result == pytest.approx({"rouge_l": 1 / 3, "rouge_l/a": 2 / 3, "rouge_l/b": 0})
    pooled = RougeL(group_by="split", categories=kinds)
    pooled.update(["1", "1", "1"], rows("1", "2", "1", split="a"))
    pooled.update([None], rows("1", split="b"))
    assert float(pooled.compute()["rouge_l"]) == pytest.approx(2 / 4)


def test_nothing_seen_is_nan_and_unlabelled_rows_are_left_out():
    metric = RougeL(field="action")
    metric.update(["a"], [Transition("x", "y")])
    assert math.isnan(float(metric.compute()["rouge_l"]))
    with pytest.raises(ValueError, match="1 predictions for 2"):
        metric.update(["a"], rows("a", "b"))
    with pytest.raises(ValueError, match="field must be"):
        RougeL(field="before")
    with pytest.raises(ValueError, match="go together"):
        RougeL(group_by="split")


def test_a_collection_keeps_names_apart():
    metrics = MetricCollection({"rouge_l": RougeL(), "bleu_char": BLEU()}, compute_groups=False)
    metrics.update(["abcd"], rows("abcd"))
    assert {key: float(number) for key, number in metrics.compute().items()} == pytest.approx(
        {"rouge_l": 1, "bleu_char": 100}
    )


def test_sums_of_two_processes_are_the_sums_of_one():
    texts, truths = ["a b", "c", "d e f", None], ["a c", "c", "d f", "g"]
    whole, one, other = RougeL(), RougeL(), RougeL()
    expected = value(whole, texts, rows(*truths))
    one.update(texts[::2], rows(*truths[::2]))
    other.update(texts[1::2], rows(*truths[1::2]))
    for state, reduce in one._reductions.items():
        setattr(one, state, reduce(torch.stack([getattr(one, state), getattr(other, state)])))
    assert float(one.compute()["rouge_l"]) == pytest.approx(expected)


def test_rouge_l_of_stems_is_googles():
    rouge_scorer = pytest.importorskip("rouge_score.rouge_scorer")
    scorer = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=True)
    pairs = [
        ("closing the door and moving the cup", "close the doors and move the cups"),
        ("Was it running? It ran as runs do", "it runs, running"),
        ("is a", "as is"),
    ]
    wanted = [scorer.score(truth, guess)["rougeL"].fmeasure for guess, truth in pairs]
    assert wanted[0] == 1 > rouge_l(*pairs[0])
    assert [rouge_l(*pair, stem=True) for pair in pairs] == pytest.approx(wanted)
    metric = RougeL("rouge_l_stemmed", stem=True)
    assert value(metric, [guess for guess, _ in pairs], rows(*(truth for _, truth in pairs))) == pytest.approx(
        sum(wanted) / len(pairs)
    )


def test_a_row_may_be_in_several_groups():
    groups = {"group_by": "groups", "categories": {"turn 1": "turn 1", "COIN": "COIN", "EK": "EK"}}
    texts = [
        Transition("x", "a b", "z", meta={"groups": names}) for names in (["turn 1", "COIN"], ["turn 2", "EK"], [])
    ]
    metric = RougeL(**groups)
    metric.update(["a b", "a c", "c"], texts)
    found = {key: float(share) for key, share in metric.compute().items()}
    assert found == {"rouge_l": 0.5, "rouge_l/turn 1": 1, "rouge_l/COIN": 1, "rouge_l/EK": 0.5}
    assert {key: int(count) for key, count in metric.row_counts().items()} == dict(
        zip(found, (3, 1, 1, 1), strict=True)
    )
    exact = ExactMatch("after", ("COIN", "EK"), "groups")
    exact.update(["a b", "a c", "c"], texts)
    assert {key: float(share) for key, share in exact.compute().items()} == pytest.approx(
        {"exact_match/COIN": 1, "exact_match/EK": 0, "exact_match": 1 / 3}
    )
