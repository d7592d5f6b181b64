"""Scores of a study: intervals over seeds or transitions, pairs, and the file that keeps them."""

from __future__ import annotations

import gzip

import numpy as np
import pytest

from recipes import scores


def test_one_seed_has_the_interval_of_its_transitions():
    values = np.r_[np.ones(300), np.zeros(700)]
    mean, low, high = scores.interval([values])
    error = 1.96 * (0.3 * 0.7 / 1000) ** 0.5
    assert mean == pytest.approx(0.3)
    assert (low, high) == (pytest.approx(0.3 - error, abs=2e-3), pytest.approx(0.3 + error, abs=2e-3))


@pytest.mark.parametrize(
    ("freedom", "known"), [(1, 12.706), (2, 4.303), (3, 3.182), (7, 2.365), (30, 2.042), (999, 1.962)]
)
def test_students_t_is_that_of_the_tables(freedom, known):
    assert scores.student(freedom) == pytest.approx(known, abs=1e-3)


def test_the_interval_over_seeds_is_by_hand():
    seeds = [np.array([0.1, 0.3]), np.array([0.2, 0.4, 0.6]), np.array([0.3])]
    half = 4.3027 * 0.1 / 3**0.5  # means 0.2, 0.4 and 0.3
    assert scores.interval(seeds) == pytest.approx((0.3, 0.3 - half, 0.3 + half), abs=1e-5)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_the_intervals_hold_the_mean_as_often_as_they_say(count, shared):
    """A bootstrap over three seeds did so in 80 of 100 cases."""
    random = np.random.default_rng(count)
    held, cases = 0, 400
    for _ in range(cases):
        each = random.normal(0, 0.04 * (count > 1), (count, 1))  # one seed tells nothing of others
        rows = random.normal(0, 0.3, (1 if shared else count, 60))
        _, low, high = scores.interval(list(each + rows + random.normal(0, 0.1, (count, 60))), shared)
        held += low <= 0 <= high
    assert 0.92 * cases <= held


def test_seeds_that_share_their_transitions_are_compared_on_those_that_all_have_a_score_of():
    rows = {"a": {"m": 1.0}, "b": {"m": 0.0}, "c": {"m": 0.5}}
    found: scores.Found = {"one": {0: rows, 1: {"a": {"m": 0.0}, "b": {}, "c": {"m": 1.0}}}}
    made = scores.tables(found, ["m"], "one", shared=True)["one"]["m"]
    assert made["mean"] == scores.interval([np.array([1.0, 0.5]), np.array([0.0, 1.0])], shared=True)
    apart: scores.Found = {"one": {0: {"a": {"m": 1.0}, "b": {}}, 1: {"a": {}, "b": {"m": 1.0}}}}
    assert scores.tables(apart, ["m"], "one", shared=True)["one"] == {}, "no transition has both scores"
    found["one"][1] = {"x": {"m": 1.0}, "y": {"m": 1.0}, "z": {"m": 1.0}}  # as many, and others
    with pytest.raises(ValueError, match="the seeds of row 'one' have different transitions"):
        scores.tables(found, ["m"], "one", shared=True)


def test_differences_are_paired():
    found: scores.Found = {
        "one": {0: {"a": {"m": 1.0}, "b": {"m": 0.0}}, 1: {"a": {"m": 1.0}}},
        "other": {0: {"b": {"m": 1.0}, "a": {"m": 0.25}}},
    }
    assert scores.difference(found, "one", "other", "m") == {0: {"a": 0.75, "b": -1.0}}
    del found["other"][0]["b"]["m"]  # it cannot be judged there
    assert scores.difference(found, "one", "other", "m") == {0: {"a": 0.75}}
    found["other"][0]["c"] = {"m": 1.0}
    with pytest.raises(ValueError, match="seed 0: the rows 'one' and 'other' were tested on different transitions"):
        scores.difference(found, "one", "other", "m")


def test_a_row_without_a_metric_leaves_the_others_in_the_table():
    found: scores.Found = {"SFT": {0: {"a": {"m": 0.5}}}, "recipe": {0: {"a": {"m": 1.0, "n": 0.0}}}}
    made = scores.tables(found, ["m", "n"], "recipe")
    assert made["SFT"].keys() == {"m"}
    assert made["SFT"]["m"]["difference"][0] == 0.5
    assert made["recipe"]["n"]["mean"][0] == 0.0


FOUND: scores.Found = {
    "SFT": {1: {"a, b": {"m": 0.1, "n": 1.0}, "c": {"m": 1 / 3}}, 0: {"a": {"m": 1.0}}},
    "recipe": {1: {"a, b": {"m": 1.0, "n": 0.0}, "c": {"m": 0.0}}},
}


def test_packed_scores_come_back(tmp_path):
    path = tmp_path / "new" / "scores.csv.gz"
    scores.pack(FOUND, ["m", "n"], path)
    back: scores.Found = {}
    scores.join(back, scores.unpack(path), path)
    assert back == FOUND
    assert list(scores.scores_of(back, "SFT", "m")) == [0, 1]
    first = path.read_bytes()
    scores.pack(FOUND, ["m", "n"], path)
    assert path.read_bytes() == first


def test_seeds_are_joined_once(tmp_path):
    path = tmp_path / "scores.csv.gz"
    scores.pack({"SFT": FOUND["SFT"]}, ["m"], path)
    joined: scores.Found = {"SFT": {7: {"a": {"m": 1.0}}}}
    scores.join(joined, scores.unpack(path), path)
    assert sorted(joined["SFT"]) == [0, 1, 7]
    with pytest.raises(ValueError, match=r"scores.csv.gz: row 'SFT' of the seeds \[0, 1\] is there already"):
        scores.join(joined, scores.unpack(path), path)


@pytest.mark.parametrize(
    "content",
    [
        b"row,seed,id,m\n",
        gzip.compress(b"row,seed,m\nSFT,0,1.0\n"),
        gzip.compress(b"row,seed,id,m\nSFT,zero,a,1.0\n"),
        gzip.compress(b"row,seed,id,m\nSFT,0,a,nan\n"),
        gzip.compress(b"row,seed,id,m\nSFT,0,a,1.0,2.0\n"),
        gzip.compress(b"row,seed,id,m\nSFT,0,a,1.0\n")[:-4],
        gzip.compress(b"row,seed,id,m\nSFT,0,a,1.0\n", mtime=0)[:10] + b"\xff" * 20,
    ],
    ids=["not packed", "no id", "a seed in words", "not finite", "a value too many", "cut off", "damaged"],
)
def test_another_file_is_refused(tmp_path, content):
    path = tmp_path / "scores.csv.gz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="no file of packed scores"):
        scores.unpack(path)
