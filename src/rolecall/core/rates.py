"""Shares of few, with what is known of them."""

from __future__ import annotations

import math
from dataclasses import dataclass

_Z_95 = 1.959963984540054
"""The 97.5th percentile of the normal distribution: 95 % lie within so many standard deviations of the middle."""


@dataclass(frozen=True, slots=True)
class Rate:
    """``count`` of ``total``, and the bounds between which the true share lies with a confidence of 95 %."""

    count: int
    total: int

    @property
    def share(self) -> float | None:
        """The share that was seen, None of nothing."""
        return self.count / self.total if self.total else None

    @property
    def bounds(self) -> tuple[float, float]:
        """Wilson's interval (J. Am. Stat. Assoc. 22, 1927, p. 209): sound for few, and for shares near 0 and 1."""
        if not self.total:
            return 0.0, 1.0
        n, p, z2 = self.total, self.count / self.total, _Z_95 * _Z_95
        middle = (p + z2 / (2 * n)) / (1 + z2 / n)
        half = _Z_95 / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
        low = 0.0 if self.count == 0 else middle - half
        high = 1.0 if self.count == self.total else middle + half
        return low, high


def difference(one: Rate, other: Rate) -> tuple[float, float]:
    """Return the bounds between which ``one``'s share less the ``other``'s lies with a confidence of 95 %.

    Newcombe's interval from Wilson's bounds (Statistics in Medicine 17, 1998, p. 873, method 10).
    """
    if one.share is None or other.share is None:
        return -1.0, 1.0
    (low, high), (other_low, other_high) = one.bounds, other.bounds
    seen = one.share - other.share
    below = math.hypot(one.share - low, other_high - other.share)
    above = math.hypot(high - one.share, other.share - other_low)
    return seen - below, seen + above
