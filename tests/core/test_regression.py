"""Weights that are learnt: they find what is there, forget what was, and are never negative."""

from __future__ import annotations

import json
import random

import pytest

from rolecall.core.regression import ERROR, Fit, Moments, Prior, not_negative, number, numbers

PRIOR = Prior([1.0, 0.5], [1.0, 0.5], together=0.5)


def learnt(weights: tuple[float, float], count: int = 60, moments: Moments | None = None, seed: int = 1) -> Moments:
    """The moments of so many observations of these weights."""
    random.seed(seed)
    moments = moments or Moments(2)
    for _ in range(count):
        features = [random.uniform(0, 100), random.uniform(0, 100)]
        seen = sum(weight * each for weight, each in zip(weights, features, strict=True))
        moments.add(features, seen, max(seen, 1.0))
    return moments


def test_nothing_seen_is_what_was_expected() -> None:
    """Without observations the weights are those of the prior, without strain, and the error is the expected one."""
    fit = Moments(2).fit(PRIOR, Fit([0.0, 0.0]))
    assert fit.weights == pytest.approx([1.0, 0.5], abs=1e-3)
    assert (fit.error, fit.misfit) == pytest.approx((ERROR, 0.0), abs=1e-3)


def test_what_was_seen_wins() -> None:
    """Many observations outweigh the prior, and the error falls."""
    fit = learnt((3.0, 0.1)).fit(PRIOR, Fit(PRIOR.mean))
    assert fit.weights == pytest.approx([3.0, 0.1], rel=0.02)
    assert fit.error < ERROR


def test_weights_that_deviate_together_strain_less() -> None:
    """A factor that all weights share is cheaper than the same deviation of one of them."""
    alone = Prior([1.0, 0.5], [1.0, 0.5])
    doubled = [2.0, 1.0]
    assert PRIOR.strain(doubled) < alone.strain(doubled) == pytest.approx(2.0)
    assert PRIOR.strain(PRIOR.mean) == 0


def test_older_observations_fade() -> None:
    """After a change the new weights are found, without starting again."""
    moments = learnt((0.5, 2.0), 200, learnt((3.0, 0.1), 200))
    assert moments.fit(PRIOR, Fit(PRIOR.mean)).weights == pytest.approx([0.5, 2.0], rel=0.1)


def test_no_weight_is_negative() -> None:
    """Where the best weight would be below 0, it is 0 and the others make the best of it."""
    assert not_negative([[2.0, 1.0], [1.0, 2.0]], [3.0, -1.0], [0.0, 5.0]) == pytest.approx([1.5, 0.0], abs=1e-3)
    fit = learnt((2.0, -0.3)).fit(PRIOR, Fit(PRIOR.mean))
    assert min(fit.weights) == 0.0


def test_a_hopeless_problem_ends() -> None:
    """Weights that hang together as closely as they can take a limited number of rounds."""
    close = 1 - 1e-13
    assert all(weight >= 0 for weight in not_negative([[1e9, 1e9 * close], [1e9 * close, 1e9]], [3.0, 2.9], [0.0, 0.0]))


def test_moments_survive_json() -> None:
    """What is written is read again as it was."""
    moments = learnt((3.0, 0.1))
    again = Moments.from_json(json.loads(json.dumps(moments.to_json())), 2)
    assert (again.products, again.right) == (moments.products, moments.right)
    assert (again.square, again.weight) == (moments.square, moments.weight)


def test_moments_of_another_size_are_refused() -> None:
    """A file of a version with other features is not taken for one of this."""
    data = Moments(2).to_json()
    with pytest.raises(ValueError, match="there are 2 rows where 3 are needed"):
        Moments.from_json(data, 3)
    with pytest.raises(ValueError, match="there are 1 numbers where 2 are needed"):
        Moments.from_json({**data, "right": [1.0]}, 2)


@pytest.mark.parametrize("value", [True, "1", None, -1.0, float("nan"), float("inf"), 1e15])
def test_numbers_that_make_no_sense_are_refused(value: object) -> None:
    """Only numbers from 0 on, of a size that can be computed with, are read."""
    with pytest.raises(ValueError, match="makes sense"):
        number(value)
    with pytest.raises(ValueError, match="makes sense"):
        numbers([0, value])
