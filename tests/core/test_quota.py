"""Limits of a key: requests a minute, tokens a day."""

from __future__ import annotations

from itertools import accumulate
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rolecall.core.keys import ApiKey, hashed
from rolecall.core.quota import DAY_S, NOTHING, Usage, admit, day_of, on_day_of, spend
from rolecall.errors import RateLimited

NOON = 20_000 * DAY_S + DAY_S / 2


def key(**limits: Any) -> ApiKey:
    return ApiKey(name="ci", sha256=hashed(b"x"), **limits)


def admitted(usage: Usage, limits: ApiKey, times: list[float]) -> list[float]:
    """The times at which requests were admitted."""
    taken: list[float] = []
    waits: list[float] = []
    for now in times:
        try:
            usage = admit(usage, limits, now)
        except RateLimited as error:
            waits.append(error.retry_after_s or 0)
        else:
            taken.append(now)
    assert all(0 < wait_s <= 60 for wait_s in waits)
    return taken


def test_without_limits_everything_is_counted_and_nothing_refused() -> None:
    """Requests and tokens add up."""
    usage = NOTHING
    for _ in range(1000):
        usage = spend(admit(usage, key(), NOON), 10, NOON)
    assert usage == Usage(20_000, 1000, 10_000)


def test_a_burst_of_a_minute_s_requests() -> None:
    """So many come at once, and then one each time one came back; the refusal says when."""
    limits, usage = key(requests_per_minute=3), NOTHING
    for _ in range(3):
        usage = admit(usage, limits, NOON)
    with pytest.raises(RateLimited, match=r"'ci' may send 3 requests a minute; the next one in 20\.0 s") as refusal:
        admit(usage, limits, NOON)
    assert refusal.value.headers() == {"retry-after": "20"}
    with pytest.raises(RateLimited):
        admit(usage, limits, NOON + 19.9)
    usage = admit(usage, limits, NOON + 20)
    with pytest.raises(RateLimited):
        admit(usage, limits, NOON + 20)
    assert usage.requests == 4


def test_a_single_request_a_minute() -> None:
    """The refusal speaks of one."""
    limits = key(requests_per_minute=1)
    with pytest.raises(RateLimited, match="may send 1 request a minute;"):
        admit(admit(NOTHING, limits, NOON), limits, NOON)


def test_a_refused_request_costs_nothing() -> None:
    """Who asks again and again is served as soon as who waited."""
    limits = key(requests_per_minute=1)
    assert admitted(NOTHING, limits, [NOON + second for second in range(121)]) == [NOON, NOON + 60, NOON + 120]


@given(
    st.integers(1, 50),
    st.lists(st.floats(0, 30), min_size=1, max_size=200).map(lambda gaps: list(accumulate(gaps, initial=NOON))),
)
def test_never_more_than_a_burst_and_the_rate(rpm: int, times: list[float]) -> None:
    """In any stretch of time no more are admitted than the burst and what came back meanwhile."""
    taken = admitted(NOTHING, key(requests_per_minute=rpm), times)
    assert taken[0] == NOON
    for first, begin in enumerate(taken):
        for last in range(first, len(taken)):
            assert last - first + 1 <= rpm + (taken[last] - begin) * rpm / 60 + 0.01


def test_a_clock_that_was_wrong_locks_nobody_out() -> None:
    """After it went back or on a year, the bucket is full."""
    limits = key(requests_per_minute=2)
    usage = admit(NOTHING, limits, NOON + 365 * DAY_S)
    assert admitted(usage, limits, [NOON, NOON, NOON, NOON + 30]) == [NOON, NOON, NOON + 30]
    assert admitted(usage, limits, [NOON + 366 * DAY_S] * 3) == [NOON + 366 * DAY_S] * 2


def test_tokens_of_a_day() -> None:
    """Once they are used up, nothing is admitted until midnight UTC; clients are told not to try again."""
    limits = key(tokens_per_day=100)
    usage = spend(admit(NOTHING, limits, NOON), 99, NOON)
    usage = spend(admit(usage, limits, NOON), 51, NOON)
    with pytest.raises(RateLimited, match=r"used 150 tokens today, and may use 100 a day.*00:00 UTC") as refusal:
        admit(usage, limits, NOON)
    assert refusal.value.retry_after_s == DAY_S / 2
    assert refusal.value.headers() == {"x-should-retry": "false"}
    midnight = 20_001 * DAY_S
    with pytest.raises(RateLimited) as refusal:
        admit(usage, limits, midnight - 90)
    assert refusal.value.headers() == {"retry-after": "90"}
    assert admit(usage, limits, midnight) == Usage(20_001, 1, 0)


def test_an_answer_that_ends_tomorrow_counts_tomorrow() -> None:
    """Tokens belong to the day on which they are known."""
    usage = admit(NOTHING, key(), NOON)
    assert spend(usage, 7, NOON + DAY_S) == Usage(20_001, 0, 7)


def test_nothing_is_given_back() -> None:
    """Tokens below zero, which no engine should report, count as none."""
    assert spend(Usage(20_000, 1, 5), -3, NOON) == Usage(20_000, 1, 5)


def test_what_was_used_today() -> None:
    """Another day's counts are not today's, the bucket goes on."""
    assert day_of(NOON) == 20_000
    usage = Usage(20_000, 5, 6, NOON + 3)
    assert on_day_of(NOON, usage) is usage
    assert on_day_of(NOON + DAY_S, usage) == Usage(20_001, 0, 0, NOON + 3)
