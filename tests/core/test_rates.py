"""Shares of few, and the bounds of what they tell."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rolecall.core.rates import Rate, difference


@pytest.mark.parametrize(
    ("count", "total", "low", "high"),
    [  # Newcombe, Statistics in Medicine 17 (1998), table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (29, 29, 1 - 0.1170, 1.0),
    ],
)
def test_bounds_are_those_of_the_literature(count: int, total: int, low: float, high: float) -> None:
    """Wilson's interval without a correction for continuity, as published."""
    assert Rate(count, total).bounds == pytest.approx((low, high), abs=5e-5)


def test_of_nothing_nothing_is_known() -> None:
    """There is no share, and it may be any."""
    assert Rate(0, 0).share is None
    assert Rate(0, 0).bounds == (0.0, 1.0)


@given(st.integers(1, 10_000).flatmap(lambda total: st.tuples(st.integers(0, total), st.just(total))))
def test_the_share_lies_within_its_bounds(pair: tuple[int, int]) -> None:
    """Bounds are ordered, lie between 0 and 1, and hold what was seen."""
    rate = Rate(*pair)
    low, high = rate.bounds
    assert rate.share is not None
    assert 0 <= low <= rate.share <= high <= 1


@pytest.mark.parametrize(
    ("one", "other", "low", "high"),
    [  # Newcombe, Statistics in Medicine 17 (1998), p. 873, table II, method 10
        ((56, 70), (48, 80), 0.0524, 0.3339),
        ((9, 10), (3, 10), 0.1705, 0.8090),
        ((5, 56), (0, 29), -0.0381, 0.1926),
        ((0, 0), (3, 10), -1.0, 1.0),
        ((3, 10), (0, 0), -1.0, 1.0),
    ],
)
def test_the_bounds_of_a_difference_are_those_of_the_literature(
    one: tuple[int, int], other: tuple[int, int], low: float, high: float
) -> None:
    """Newcombe's interval, as published; turned round it is the same; of nothing it may be any."""
    assert difference(Rate(*one), Rate(*other)) == pytest.approx((low, high), abs=5e-5)
    assert difference(Rate(*other), Rate(*one)) == pytest.approx((-high, -low), abs=5e-5)
