"""Numbers of transitions by kind of action."""

import math

import pytest

from swirl_lightning.benchmarks.shares import check_shares, quotas


def test_numbers_are_the_nearest_that_add_up():
    assert quotas(7, {"a": 0.5, "b": 0.5}).total() == 7
    assert quotas(10, {"a": 1, "b": 2, "c": 4}) == {"a": 1, "b": 3, "c": 6}  # 1.43, 2.86, 5.71
    assert quotas(3, {"a": 1, "b": 0}) == {"a": 3, "b": 0}
    assert all(quotas(n, {"a": 0.1, "b": 0.33, "c": 0.2}).total() == n for n in range(30))


@pytest.mark.parametrize(
    "shares", [{"x": 1.0}, {"a": -1.0}, {"a": math.nan}, {"a": math.inf}, {"a": 1e308}, {"a": 0.0}, {}]
)
def test_shares_that_make_no_sense_are_refused(shares):
    with pytest.raises(ValueError, match=r"shares of a World actions are numbers >= 0 by kind, of \['a', 'b'\]; got"):
        check_shares("a World", shares, ("a", "b"))
