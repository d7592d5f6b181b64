"""Scores of a study: intervals by a bootstrap over seeds and transitions, pairs, and the file that keeps them."""

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


def test_the_interval_is_as_wide_as_seeds_and_transitions_make_it():
    random = np.random.default_rng(0)
    seeds = [shift + random.normal(0, 1, 400) for shift in np.linspace(-0.3, 0.3, 8)]
    mean, low, high = scores.interval(seeds)
    means = np.array([values.mean() for values in seeds])
    # variance of a mean of 8 drawn seeds: that between seeds, and that of each seed's own mean, over 8
    error = 1.96 * ((means.var() + 1 / 400) / 8) ** 0.5
    assert mean == pytest.approx(means.mean())
    assert high - low == pytest.approx(2 * error, rel=0.08)


def test_differences_are_paired():
    one = {0: {"a": 1.0, "b": 0.0}, 1: {"a": 1.0}}
    other = {0: {"b": 1.0, "a": 0.25}}
    (found,) = scores.difference(one, other)
    assert found.tolist() == [0.75, -1.0]
    with pytest.raises(ValueError, match="seed 0: the two rows were tested on different transitions"):
        scores.difference(one, {0: {"a": 1.0, "c": 1.0}})


FOUND: scores.Found = {
    "SFT": {1: {"a, b": {"m": 0.1, "n": 1.0}, "c": {"m": 1 / 3}}, 0: {"a": {"m": 1.0}}},
    "recipe": {1: {"a, b": {"m": 1.0, "n": 0.0}, "c": {"m": 0.0}}},
}


def test_packed_scores_come_back(tmp_path):
    path = tmp_path / "new" / "scores.csv.gz"
    scores.pack(FOUND, ["m", "n"], path)
    back: scores.Found = {}
    scores.join(back, path)
    assert back == FOUND
    assert list(scores.scores_of(back, "SFT", "m")) == [0, 1]
    first = path.read_bytes()
    scores.pack(FOUND, ["m", "n"], path)
    assert path.read_bytes() == first


def test_seeds_are_joined_once(tmp_path):
    path = tmp_path / "scores.csv.gz"
    scores.pack({"SFT": FOUND["SFT"]}, ["m"], path)
    joined: scores.Found = {"SFT": {7: {"a": {"m": 1.0}}}}
    scores.join(joined, path)
    assert sorted(joined["SFT"]) == [0, 1, 7]
    with pytest.raises(ValueError, match=r"scores.csv.gz: row 'SFT' of the seeds \[0, 1\] is there already"):
        scores.join(joined, path)


@pytest.mark.parametrize(
    "content",
    [
        b"row,seed,id,m\n",
        gzip.compress(b"row,seed,m\nSFT,0,1.0\n"),
        gzip.compress(b"row,seed,id,m\nSFT,zero,a,1.0\n"),
        gzip.compress(b"row,seed,id,m\nSFT,0,a,nan\n"),
        gzip.compress(b"row,seed,id,m\nSFT,0,a,1.0,2.0\n"),
        gzip.compress(b"row,seed,id,m\nSFT,0,a,1.0\n")[:-4],
    ],
    ids=["not packed", "no id", "a seed in words", "not finite", "a value too many", "cut off"],
)
def test_another_file_is_refused(tmp_path, content):
    path = tmp_path / "scores.csv.gz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="no file of packed scores"):
        scores.join({}, path)
