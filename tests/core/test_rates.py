"""Shares of few, and the bounds of what they tell."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rolecall.core.rates import Rate


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
