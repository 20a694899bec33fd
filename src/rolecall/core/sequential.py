"""Whether a variant differs from the control, said so that it may be looked at after every request.

Observations of the variant meet such of the control in pairs, drawn by lot within blocks of neighbours in time, and
each pair counts by its difference D. Which of two neighbours got the variant was decided by a hash alone. So if the
variant changes nothing, D is as likely to be d as to be -d, whatever was seen before, and however load and requests
change in the course of a day: nothing is assumed of how outcomes are distributed. For such differences, with S their
sum and V the sum of their squares, exp(l S - l^2 V / 2) is a nonnegative supermartingale for every l, however heavy
their tails are: de la Peña, "A general class of exponential inequalities for martingales and
ratios", Ann. Probab. 27 (1999), Lemma 6.1; Howard, Ramdas, McAuliffe and Sekhon, "Time-uniform Chernoff bounds via
nonnegative supermartingales", Probab. Surveys 17 (2020), Table 3. Mixed over l ~ N(0, 1/rho), as Robbins does it
("Statistical methods related to the law of the iterated logarithm", Ann. Math. Stat. 41, 1970), it is

    M = sqrt(rho / (V + rho)) exp(S^2 / (2 (V + rho)))

and by Ville's inequality M ever reaches 1/alpha with a probability of at most alpha, however often it is looked at.
That holds for every number of pairs. Taken the other way round, for a difference of delta, the same boundary is a
confidence sequence: exact where the variant shifts the outcome by delta, and for means in general as exact as the
central limit theorem, then the asymptotic confidence sequence of Waudby-Smith, Arbour, Sinha, Kennedy and Ramdas
("Time-uniform central limit theory and asymptotic confidence sequences", Ann. Statist. 52, 2024).

How good the theorem is depends on the skewness of the differences over the root of their number: Boos and
Hughes-Oliver, "How large does n have to be for Z and t intervals?", Amer. Statist. 54 (2000). A variant that is a
little faster most of the time and very slow now and then looks better until its bad cases have been seen, and for a
while after them: sums divided by their own spread reach a boundary too often on the side away from the long tail. So
the bound on the side of the tail is known only from so many pairs on, and without it nothing is claimed there.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

ALPHA = 0.05
"""How often a difference may be claimed at all where there is none."""

BLOCK = 16
"""Observations of both within which pairs are drawn; a fifth of them is left over where the shares are the same."""

FIRST_PAIRS = 20
"""Pairs that differ before anything is said: their absolute values, which tell nothing of a direction, give rho."""
LEAST_PAIRS = 100
"""Pairs before anything is said of outcomes that are not yes or no: what happens to one in 33 of them, or more, is
then among them with a chance of 95 %."""
_PAIRS_BY_SKEWNESS = 300.0
"""Pairs by squared skewness before the bound on the side of the longer tail is known. By the first term of its
Edgeworth expansion a t statistic is beyond z on one side by (2 z^2 + 1) phi(z) skewness / (6 sqrt(n)) too often: half a
percent of all at z = 1.96."""
_LEAST_SPREAD = 1e-8
"""A variance that is less of the mean square is that of numbers that are all the same, but for rounding."""
_SHARPEST_AT = 300
"""Pairs that differ at which the boundary is to be the lowest it can be."""
_SPREAD = -2 * math.log(ALPHA) + math.log(-2 * math.log(ALPHA)) + 1
"""V / rho where the boundary is lowest at V: Howard, Ramdas, McAuliffe and Sekhon, "Time-uniform, nonparametric,
nonasymptotic confidence sequences", Ann. Statist. 49 (2021), section 3.5."""
MOST_PAIRS = 10_000_000
"""A difference that would take more pairs is called none that could be found."""

_PRIOR = 100.0
"""How many units the prior of the shares weighs in `split_evidence`."""


class Pairing:
    """Two streams of numbers as one of differences, variant minus control.

    Within each block of ``BLOCK`` observations, pairs are drawn by lot, as many as there can be. What is left over is
    not counted: it would have to meet what came later, and the load of that hour with it.
    """

    def __init__(self) -> None:
        self._lots = random.Random(0)  # noqa: S311 - to be the same at every look
        self._block: tuple[list[float], list[float]] = ([], [])

    def add(self, value: float, *, of_variant: bool) -> list[float]:
        """Return the differences of the block that is complete now; none if it is not."""
        self._block[of_variant].append(value)
        controls, variants = self._block
        if len(controls) + len(variants) < BLOCK:
            return []
        self._block = ([], [])
        self._lots.shuffle(controls)
        self._lots.shuffle(variants)
        return [variant - control for control, variant in zip(controls, variants, strict=False)]


@dataclass(slots=True)
class Evidence:
    """What the differences so far say. ``differing`` counts those that are not 0.

    ``of_yes_or_no``: outcomes are 0 or 1. Where their means are the same, all is the same, and the test is exact.
    ``is_positive`` is the direction in which they said most, after ``strongest_at`` pairs; 0 of them: they say nothing.
    """

    of_yes_or_no: bool = False
    pairs: int = 0
    differing: int = 0
    total: float = 0.0
    squares: float = 0.0
    cubes: float = 0.0
    strongest_at: int = 0
    is_positive: bool = False
    _rho: float = 0.0
    _most: float = 0.0

    def add(self, difference: float) -> None:
        """Take in one more pair."""
        self.pairs += 1
        if difference == 0:
            return
        self.differing += 1
        self.total += difference
        self.squares += difference * difference
        self.cubes += difference**3
        if self.differing == FIRST_PAIRS:
            self._rho = self.squares / FIRST_PAIRS * _SHARPEST_AT / _SPREAD
        if self.is_enough:
            spread = self.squares + self._rho
            now = (self.total * self.total / spread + math.log(self._rho / spread)) / 2
            if now > self._most and self.is_known(above=self.total < 0):
                self._most, self.strongest_at, self.is_positive = now, self.pairs, self.total > 0

    @property
    def is_enough(self) -> bool:
        """Whether there are so many pairs that anything can be said."""
        return self._rho > 0 and (self.of_yes_or_no or self.pairs >= LEAST_PAIRS)

    @property
    def skewness(self) -> float:
        """The skewness of the differences, positive where the longer tail is above; 0 if they are all the same."""
        if not self.pairs:
            return 0.0
        mean, square = self.mean, self.squares / self.pairs
        variance = square - mean * mean
        if variance <= _LEAST_SPREAD * square:
            return 0.0
        return float((self.cubes / self.pairs - 3 * mean * square + 2 * mean**3) / variance**1.5)

    def is_known(self, *, above: bool) -> bool:
        """Whether pairs are enough for the bound above, or below, the mean: the longer tail takes more of them."""
        return self.pairs >= self._pairs_for_tail(above=above)

    def _pairs_for_tail(self, *, above: bool) -> float:
        skewness = self.skewness
        if self.of_yes_or_no or (skewness > 0) is not above:
            return 0.0
        return _PAIRS_BY_SKEWNESS * skewness * skewness

    @property
    def p_value(self) -> float:
        """The chance of evidence as strong as the strongest so far, at any time, if there is no difference.

        It never rises again: what was found stays found, in the direction in which it was found.
        """
        return math.exp(-self._most)

    def bounds(self, alpha: float = ALPHA) -> tuple[float | None, float | None]:
        """Return what the difference is above, and what below, at all times with a probability of 1 - alpha.

        None for one that is not known yet.
        """
        half = self.half_width(alpha)
        if half is None:
            return None, None
        low = self.mean - half if self.is_known(above=False) else None
        return low, self.mean + half if self.is_known(above=True) else None

    @property
    def mean(self) -> float:
        """The mean difference; 0 without a pair."""
        return self.total / self.pairs if self.pairs else 0.0

    def half_width(self, alpha: float = ALPHA) -> float | None:
        """Return h such that mean ± h holds the difference at all times with a probability of 1 - alpha.

        None while there are too few pairs for any bound; of long tails it knows nothing, as ``bounds`` does.
        """
        if not self.is_enough:
            return None
        n, rest = self.pairs, max(0.0, self.squares - self.pairs * self.mean**2)

        def is_beyond(h: float) -> bool:
            return self._is_beyond(n * h, rest + n * h * h, alpha)

        high = math.sqrt(self.squares / n)
        for _ in range(60):
            if is_beyond(high):
                return _bisected(0.0, high, is_beyond)
            high *= 1.5
        return None

    def _is_beyond(self, total: float, squares: float, alpha: float) -> bool:
        spread = squares + self._rho
        return total * total >= spread * (math.log(spread / self._rho) - 2 * math.log(alpha))

    def pairs_needed(self, alpha: float = ALPHA) -> int | None:
        """Return at how many pairs in all a difference like the one seen would be established, on average.

        None where there is nothing to go by, or more than ``MOST_PAIRS`` would be needed.
        """
        if not self.is_enough:
            return None
        mean, square = self.mean, self.squares / self.pairs

        def is_beyond(pairs: float) -> bool:
            return self._is_beyond(pairs * mean, pairs * square, alpha)

        tail = self._pairs_for_tail(above=mean < 0)
        if not is_beyond(MOST_PAIRS) or tail > MOST_PAIRS:
            return None
        return math.ceil(max(_bisected(0.0, MOST_PAIRS, is_beyond), tail))


def _bisected(low: float, high: float, is_beyond: Callable[[float], bool]) -> float:
    """Return the smallest number beyond, to one part in a million; ``high`` is beyond, ``low`` is not."""
    while high - low > 1e-6 * high:
        middle = (low + high) / 2
        if is_beyond(middle):
            high = middle
        else:
            low = middle
    return high


def split_evidence(counts: Sequence[int], weights: Sequence[float]) -> float:
    """Return the p-value of shares that are not those of the weights (sample ratio mismatch), valid at every look.

    The Bayes factor of a Dirichlet prior around the weights against the weights themselves is a martingale under them:
    Lindon and Malek, "Anytime-valid inference for multinomial count data", NeurIPS 2022. 0 for a count where the weight
    is 0.
    """
    whole = sum(weights)
    shares = [weight / whole for weight in weights]
    if any(count and not share for count, share in zip(counts, shares, strict=True)):
        return 0.0
    gained = math.lgamma(_PRIOR) - math.lgamma(_PRIOR + sum(counts))
    for count, share in zip(counts, shares, strict=True):
        if share:
            gained += math.lgamma(_PRIOR * share + count) - math.lgamma(_PRIOR * share) - count * math.log(share)
    return min(1.0, math.exp(-gained)) if gained > -700 else 1.0
