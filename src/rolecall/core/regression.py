"""Weights that fit what was seen, held to what was expected: Bayesian linear regression that forgets.

As in Bishop, *Pattern Recognition and Machine Learning* (2006), section 3.3, with three additions: errors are relative
to the size of what is predicted, older observations fade, and no weight is below 0. What is kept of all observations is
one matrix of moments, so that an update costs the same after a million of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import mul
from typing import Any, TypeAlias

Vector: TypeAlias = list[float]
Matrix: TypeAlias = list[Vector]

FORGETTING = 0.98
"""What an observation counts after the next one: about the last 50 matter."""
ERROR = 0.05
"""The relative error that is expected of the best weights before any was seen."""
ERROR_COUNT = 8
"""That expectation counts as so many observations."""
_SWEEPS, _PRECISION = 40, 1e-3


def dot(one: Sequence[float], other: Sequence[float]) -> float:
    """Return the inner product."""
    return math.fsum(map(mul, one, other))


class Prior:
    """What is expected of the weights: a Gaussian, of which each weight deviates by itself and all do together.

    ``together`` is the deviation of a factor that they share.
    """

    def __init__(self, mean: Sequence[float], deviations: Sequence[float], together: float = 0.0) -> None:
        self.mean = list(mean)
        inverse = [1 / each**2 for each in deviations]
        # (D + t² m mᵀ)⁻¹ by Sherman and Morrison, with the variances D and the mean m.
        pull = list(map(mul, inverse, mean))
        share = together**2 / (1 + together**2 * dot(pull, mean))
        self.precision: Matrix = [[-share * one * other for other in pull] for one in pull]
        for index, own in enumerate(inverse):
            self.precision[index][index] += own
        self.right = [dot(row, self.mean) for row in self.precision]

    def strain(self, weights: Sequence[float]) -> float:
        """Return how far weights are from what is expected: the square of their Mahalanobis distance."""
        away = [weight - mean for weight, mean in zip(weights, self.mean, strict=True)]
        return sum(each * dot(row, away) for each, row in zip(away, self.precision, strict=True))


@dataclass(frozen=True, slots=True)
class Fit:
    """Weights, all from 0 on, their relative error, and how badly they fit what was seen and expected together."""

    weights: Vector
    error: float = ERROR
    misfit: float = 0.0


class Moments:
    """Sums over all observations, older ones fading: of products of features, and of them with what was seen."""

    def __init__(self, count: int) -> None:
        self.products: Matrix = [[0.0] * count for _ in range(count)]
        self.right: Vector = [0.0] * count
        self.square = 0.0
        self.weight = 0.0

    def add(self, features: Sequence[float], seen: float, scale: float) -> None:
        """Add an observation whose error is measured in shares of ``scale``."""
        row = [each / scale for each in features]
        target = seen / scale
        for index, each in enumerate(row):
            kept = self.products[index]
            self.products[index] = [FORGETTING * old + each * other for old, other in zip(kept, row, strict=True)]
        self.right = [FORGETTING * old + target * each for old, each in zip(self.right, row, strict=True)]
        self.square = FORGETTING * self.square + target**2
        self.weight = FORGETTING * self.weight + 1

    def fit(self, prior: Prior, begin: Fit) -> Fit:
        """Return what fits best what was seen and expected.

        ``begin`` is the last one: its error decides how much the prior counts against what was seen.
        """
        variance = begin.error**2
        right = [variance * held + seen for held, seen in zip(prior.right, self.right, strict=True)]
        weights = not_negative(self._matrix(prior, variance), right, begin.weights)
        missed = self._missed(weights)
        error = math.sqrt((missed + ERROR_COUNT * ERROR**2) / (self.weight + ERROR_COUNT))
        return Fit(weights, error, missed / ERROR**2 + prior.strain(weights))

    def _matrix(self, prior: Prior, variance: float) -> Matrix:
        return [
            [variance * held + seen for held, seen in zip(held_row, seen_row, strict=True)]
            for held_row, seen_row in zip(prior.precision, self.products, strict=True)
        ]

    def _missed(self, weights: Sequence[float]) -> float:
        """Return the sum of the squares of relative errors."""
        inner = sum(weight * dot(row, weights) for weight, row in zip(weights, self.products, strict=True))
        return max(0.0, self.square - 2 * dot(weights, self.right) + inner)

    def to_json(self) -> dict[str, Any]:
        """Return the sums as plain values."""
        half = [row[: index + 1] for index, row in enumerate(self.products)]
        return {"products": half, "right": self.right, "square": self.square, "weight": self.weight}

    @classmethod
    def from_json(cls, data: Mapping[str, Any], count: int) -> Moments:
        """Return what `to_json` described; raises ``ValueError``, ``KeyError`` or ``TypeError`` for anything else."""
        moments = cls(count)
        half = [numbers(row, index + 1) for index, row in enumerate(data["products"])]
        if len(half) != count:
            raise ValueError(f"there are {len(half)} rows where {count} are needed")
        indices = range(count)
        moments.products = [[half[max(row, column)][min(row, column)] for column in indices] for row in indices]
        moments.right = numbers(data["right"], count)
        moments.square, moments.weight = number(data["square"]), number(data["weight"])
        return moments


def not_negative(matrix: Matrix, right: Sequence[float], weights: Sequence[float]) -> Vector:
    """Return the weights from 0 on that minimise ½ wᵀMw − rᵀw, going along one after the other (coordinate descent)."""
    found = list(weights)
    for _ in range(_SWEEPS):
        most = 0.0
        for index, row in enumerate(matrix):
            old = found[index]
            found[index] = max(0.0, old + (right[index] - dot(row, found)) / row[index])
            most = max(most, abs(found[index] - old) * math.sqrt(row[index]))
        if most < _PRECISION:
            break
    return found


def number(value: Any) -> float:
    """Return a number from 0 on that was read from a file, or raise ``ValueError``."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e15:
        raise ValueError(f"{value!r:.80} is no number that makes sense here")
    return float(value)


def numbers(values: Any, length: int | None = None) -> Vector:
    """Return a list of so many numbers that was read from a file, or raise ``ValueError`` or ``TypeError``."""
    checked = [number(value) for value in values]
    if length is not None and len(checked) != length:
        raise ValueError(f"there are {len(checked)} numbers where {length} are needed")
    return checked
