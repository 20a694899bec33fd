"""How much a key has used, and whether it may go on. Times are seconds since the epoch: they outlive the process."""

from __future__ import annotations

from typing import NamedTuple

from rolecall.core.keys import ApiKey
from rolecall.core.wording import counted
from rolecall.errors import RateLimited

DAY_S = 86_400
MINUTE_S = 60.0
_ROUNDING_S = 1e-5
"""A time of today as a float is known to 2e-7 s."""


class Usage(NamedTuple):
    """What a key has used on ``day`` (days since the epoch, UTC), and ``full_at``, when its bucket is full again.

    The bucket holds as many requests as a minute allows. That one time says all of it: each request moves it on by what
    one request takes to come back, and a request that would move it beyond a minute from now is one too many (the
    generic cell rate algorithm, ITU-T I.371).
    """

    day: int = 0
    requests: int = 0
    tokens: int = 0
    full_at: float = 0.0


NOTHING = Usage()


def day_of(now: float) -> int:
    """Return the day, in days since the epoch, UTC."""
    return int(now // DAY_S)


def on_day_of(now: float, usage: Usage) -> Usage:
    """Return what of it was used today."""
    return usage if usage.day == day_of(now) else Usage(day_of(now), full_at=usage.full_at)


def admit(usage: Usage, key: ApiKey, now: float) -> Usage:
    """Count one request; raises ``RateLimited`` if it is one too many, or today's tokens are used up.

    Tokens are known when an answer ends, so requests in flight can go beyond the limit together.
    """
    usage = on_day_of(now, usage)
    if key.tokens_per_day is not None and usage.tokens >= key.tokens_per_day:
        raise RateLimited(
            f"The key {key.name!r} has used {usage.tokens} tokens today, and may use {key.tokens_per_day} a day. "
            "The next day begins at 00:00 UTC.",
            retry_after_s=(usage.day + 1) * DAY_S - now,
        )
    full_at = usage.full_at
    if key.requests_per_minute is not None:
        full_at = _fuller(full_at, key, key.requests_per_minute, now)
    return Usage(usage.day, usage.requests + 1, usage.tokens, full_at)


def _fuller(full_at: float, key: ApiKey, requests_per_minute: int, now: float) -> float:
    # Full later than a minute from now, which cannot be, it is after a clock was set back.
    begin = full_at if now < full_at <= now + MINUTE_S + _ROUNDING_S else now
    after = begin + MINUTE_S / requests_per_minute
    wait_s = after - now - MINUTE_S
    if wait_s > _ROUNDING_S:
        allowed = counted(requests_per_minute, "request")
        raise RateLimited(
            f"The key {key.name!r} may send {allowed} a minute; the next one in {wait_s:.1f} s.", retry_after_s=wait_s
        )
    return after


def spend(usage: Usage, tokens: int, now: float) -> Usage:
    """Add the tokens of an answer to the day on which it ended."""
    usage = on_day_of(now, usage)
    return Usage(usage.day, usage.requests, usage.tokens + max(0, tokens), usage.full_at)
