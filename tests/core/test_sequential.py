"""The sequential test: looked at as often as one likes, it seldom finds what is not there, and finds what is."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rolecall.core.sequential import ALPHA, BLOCK, FIRST_PAIRS, LEAST_PAIRS, Evidence, Pairing, split_evidence

EXPERIMENTS, PEEKS, PER_PEEK = 1_000, 100, 10
"""Each null experiment is looked at 100 times, every 10 observations."""
ALLOWED = EXPERIMENTS * ALPHA

Draw = Callable[[random.Random, bool], float]


def share_found(
    draw: Draw, seed: int, *, experiments: int, looks: int, weight: float = 0.5, of_yes_or_no: bool = False
) -> float:
    """Return the share of experiments in which a difference was claimed at any look."""
    rng, found = random.Random(seed), 0
    for _ in range(experiments):
        pairing, evidence = Pairing(), Evidence(of_yes_or_no)
        for _look in range(looks):
            for _ in range(PER_PEEK):
                is_variant = rng.random() < weight
                for difference in pairing.add(draw(rng, is_variant), of_variant=is_variant):
                    evidence.add(difference)
            if evidence.p_value <= ALPHA:
                found += 1
                break
    return found / experiments


def binary(rate: float, variant: float | None = None) -> Draw:
    """Return outcomes of 0 and 1."""
    return lambda rng, is_variant: float(rng.random() < (rate if variant is None or not is_variant else variant))


def lognormal(shift: float = 0, sigma: float = 1.0) -> Draw:
    """Return logarithms of lognormal durations, which the variant multiplies by exp(shift)."""
    return lambda rng, is_variant: math.log(rng.lognormvariate(shift if is_variant else 0, sigma))


def raw_lognormal(rng: random.Random, _is_variant: bool, /) -> float:  # noqa: FBT001
    """Return durations as they are, skewed and with a heavy tail."""
    return rng.lognormvariate(0, 1.5)


def clustered(rng: random.Random, _is_variant: bool, /) -> float:  # noqa: FBT001
    """Return the mean of one unit's 1 to 30 requests, which have the unit's own level in common."""
    level, count = rng.gauss(0, 1), rng.choice((1, 1, 2, 5, 30))
    return level + rng.gauss(0, 0.5) / math.sqrt(count)


def drifting() -> Draw:
    """Return outcomes that rise and fall for both alike, as load does in the course of days."""
    numbers = itertools.count()
    return lambda rng, _: math.sin(next(numbers) / 200) + rng.gauss(0, 0.1)


@pytest.mark.parametrize(
    ("draw", "weight"),
    [
        pytest.param(binary(0.5), 0.5, id="binary"),
        pytest.param(binary(0.97), 0.5, id="binary, rare failures"),
        pytest.param(lognormal(), 0.5, id="lognormal"),
        pytest.param(raw_lognormal, 0.5, id="lognormal, no logarithm"),
        pytest.param(clustered, 0.5, id="clustered units"),
        pytest.param(drifting(), 0.5, id="drift"),
        pytest.param(drifting(), 0.1, id="drift, shares 9 to 1"),
        pytest.param(lognormal(), 0.1, id="shares 9 to 1"),
    ],
)
def test_no_difference_is_seldom_found(draw: Draw, weight: float, request: pytest.FixtureRequest) -> None:
    """Of 1,000 experiments without a difference, looked at 100 times each, at most 5 % claim one."""
    is_binary = request.node.callspec.id.startswith("binary")
    found = share_found(draw, 7, experiments=EXPERIMENTS, looks=PEEKS, weight=weight, of_yes_or_no=is_binary)
    assert found * EXPERIMENTS <= ALLOWED


def lopsided(rng: random.Random, is_variant: bool, /) -> float:  # noqa: FBT001
    """Return logarithms of durations: the variant is a little faster, one in 25 is 25 times slower, the means alike."""
    return rng.gauss(0, 0.1) + (math.log(25) * ((rng.random() < 0.04) - 0.04) if is_variant else 0.0)


def steady(rng: random.Random, is_variant: bool, /) -> float:  # noqa: FBT001
    """Return scores that are always 0.95, and of the variant 1 or, one in 20, 0."""
    return float(rng.random() < 0.95) if is_variant else 0.95


@pytest.mark.parametrize("draw", [lopsided, steady])
def test_rare_bad_cases_are_waited_for(draw: Draw) -> None:
    """Of 200 experiments with the same means, where a variant is better but for rare bad cases, 5 % claim something."""
    assert share_found(draw, 3, experiments=200, looks=100) <= ALPHA


@pytest.mark.parametrize(
    ("draw", "observations"),
    [
        pytest.param(binary(0.9, 0.8), 1_200, id="90 % against 80 %"),
        pytest.param(lognormal(math.log(1.2), 0.5), 800, id="20 % slower"),
        pytest.param(lognormal(1.0, 1.0), 300, id="2.7 times as slow"),
    ],
)
def test_a_true_difference_is_found(draw: Draw, observations: int) -> None:
    """Nine of ten experiments find a true difference with so many observations of both variants together."""
    assert share_found(draw, 3, experiments=200, looks=observations // PER_PEEK) >= 0.9


def test_yes_or_no_needs_fewer_pairs() -> None:
    """A variant that fails always is found after tens of requests: there are no cases that could still be worse."""
    assert share_found(binary(0.98, 0), 3, experiments=100, looks=8, of_yes_or_no=True) >= 0.9


def test_the_interval_holds_the_difference_at_all_times() -> None:
    """Of 300 experiments with a true shift, at most 5 % have an interval without it at any of 40 looks."""
    rng, missed = random.Random(5), 0
    for _ in range(300):
        evidence = Evidence()
        for number in range(1, 401):
            evidence.add(0.3 + rng.gauss(0, 1) - rng.gauss(0, 1))
            half = evidence.half_width() if number % 10 == 0 else None
            if half is not None and abs(evidence.mean - 0.3) > half:
                missed += 1
                break
    assert missed <= 300 * ALPHA


differences = st.lists(st.floats(-1e6, 1e6).filter(lambda d: d == 0 or abs(d) > 1e-6), min_size=1, max_size=80)


@given(differences)
def test_the_interval_and_the_test_agree(values: list[float]) -> None:
    """An interval without 0 is a difference that is established; what was established stays so."""
    evidence, lowest = Evidence(of_yes_or_no=True), 1.0
    for value in values:
        evidence.add(value)
        assert evidence.p_value <= lowest
        lowest = evidence.p_value
    half = evidence.half_width()
    assert (half is None) or evidence.is_enough
    if half is not None and abs(evidence.mean) > half * (1 + 1e-3):
        assert evidence.p_value <= ALPHA * (1 + 1e-6)


def test_what_was_found_keeps_its_direction() -> None:
    """Differences that turn round do not turn round what they established before, until they are the stronger ones."""
    evidence = Evidence(of_yes_or_no=True)
    for _ in range(40):
        evidence.add(-1.0)
    assert (evidence.is_positive, evidence.strongest_at) == (False, 40)
    found = evidence.p_value
    for _ in range(50):
        evidence.add(0.0)
        evidence.add(1.0)
    assert evidence.mean > 0
    assert (evidence.is_positive, evidence.strongest_at) == (False, 40)
    assert evidence.p_value == found
    for _ in range(400):
        evidence.add(1.0)
    assert (evidence.is_positive, evidence.strongest_at) == (True, 540)
    assert evidence.p_value < found


@given(differences, st.floats(0.001, 1000))
def test_units_do_not_matter(values: list[float], factor: float) -> None:
    """Seconds or milliseconds: the evidence is the same, and the interval is in the same unit as the differences."""
    one, other = Evidence(of_yes_or_no=True), Evidence(of_yes_or_no=True)
    for value in values:
        one.add(value)
        other.add(value * factor)
    assert other.p_value == pytest.approx(one.p_value, rel=1e-6)
    half, other_half = one.half_width(), other.half_width()
    assert (half is None) == (other_half is None)
    if half is not None and other_half is not None:
        assert other_half == pytest.approx(half * factor, rel=1e-4)


def test_too_little_is_told() -> None:
    """Before a hundred pairs, or twenty that differ, there is no interval and no forecast, however alike they are."""
    evidence, binary_evidence = Evidence(), Evidence(of_yes_or_no=True)
    for count in range(1, LEAST_PAIRS):
        evidence.add(1.0)
        binary_evidence.add(float(count % 5 == 0))
    for few in (evidence, binary_evidence):
        assert (few.is_enough, few.p_value, few.pairs_needed()) == (False, 1.0, None)
        assert (few.half_width(), few.bounds()) == (None, (None, None))
    assert (binary_evidence.pairs, binary_evidence.differing) == (LEAST_PAIRS - 1, FIRST_PAIRS - 1)
    evidence.add(1.0)
    binary_evidence.add(1.0)
    assert evidence.is_enough
    assert binary_evidence.is_enough
    assert evidence.p_value < 1e-9
    assert (Evidence().mean, Evidence().skewness) == (0, 0)


def test_an_interval_needs_more_pairs_than_the_smallest_chance_allows() -> None:
    """With as many pairs as differ at the least, and a chance that is next to nothing, no width is enough."""
    evidence = Evidence(of_yes_or_no=True)
    for _ in range(FIRST_PAIRS):
        evidence.add(1.0)
    assert evidence.half_width(1e-12) is None
    assert evidence.half_width(0.05) is not None


@pytest.mark.parametrize("sign", [1, -1])
def test_a_long_tail_takes_more_pairs(sign: int) -> None:
    """The bound on its side is not known, and the other side not claimed, until pairs are many for the skewness."""
    evidence, of_yes_or_no = Evidence(), Evidence(of_yes_or_no=True)
    values = [-0.2 * sign, -0.3 * sign] * 19 + [3.0 * sign, -0.1 * sign]
    for value in values * 10:
        evidence.add(value)
        of_yes_or_no.add(value)
    assert evidence.mean * sign < 0
    assert evidence.skewness * sign > 5
    assert evidence.skewness == of_yes_or_no.skewness
    low, high = evidence.bounds()
    assert [low is None, high is None] == [sign < 0, sign > 0]
    assert None not in of_yes_or_no.bounds()
    half = evidence.half_width()
    assert half is not None
    assert abs(evidence.mean) > half
    assert evidence.p_value > ALPHA
    needed = evidence.pairs_needed()
    assert needed is not None
    assert 250 * evidence.skewness**2 < needed < 350 * evidence.skewness**2
    while evidence.pairs < needed + 40:
        for value in values:
            evidence.add(value)
    assert None not in evidence.bounds()
    assert evidence.p_value < ALPHA
    assert evidence.is_positive is (sign < 0)


def test_a_tail_that_is_seen_late_is_told() -> None:
    """What was established before the first bad case loses its bound once there is one, until pairs are many."""
    evidence = Evidence()
    for number in range(300):
        evidence.add(-0.2 - 0.1 * (number % 2))
    assert (evidence.bounds()[1] or 0) < 0
    evidence.add(5.0)
    assert evidence.mean < 0
    assert evidence.p_value < ALPHA
    assert evidence.bounds()[1] is None


def test_a_tail_that_would_take_too_many_pairs_has_no_number() -> None:
    """One case in tens of thousands that outweighs the others: no number of pairs is named."""
    evidence = Evidence()
    for number in range(40_000):
        evidence.add(-0.2 - 0.1 * (number % 2))
    assert evidence.pairs_needed() is not None
    evidence.add(1_000.0)
    assert evidence.mean < 0
    assert evidence.pairs_needed() is None


def test_how_many_pairs_are_needed() -> None:
    """A difference goes on as it was seen: then it is established at the pair that was forecast."""
    evidence, rng = Evidence(of_yes_or_no=True), random.Random(1)
    for _ in range(60):
        evidence.add(rng.choice((1.0, 1.0, -1.0, 0.0)))
    needed = evidence.pairs_needed()
    assert needed is not None
    assert needed > 60
    steady = [value * 1.0 for value in (1, 1, -1, 0)] * needed
    again = Evidence(of_yes_or_no=True)
    for value in steady:
        again.add(value)
        if again.p_value <= ALPHA:
            break
    assert 0.3 < again.pairs / needed < 3


def test_what_is_no_difference_needs_no_number() -> None:
    """Where nothing is seen, no number of pairs is named."""
    evidence = Evidence()
    for number in range(100):
        evidence.add((-1.0) ** number)
    assert evidence.pairs_needed() is None


@given(st.lists(st.tuples(st.booleans(), st.integers(-100, 100)), max_size=5 * BLOCK))
def test_pairs_are_of_one_block(stream: list[tuple[bool, int]]) -> None:
    """Each whole block gives as many pairs as its rarer variant has observations, each of which is in one pair."""
    pairing = Pairing()
    found = [pairing.add(value, of_variant=is_variant) for is_variant, value in stream]
    for start in range(0, len(stream), BLOCK):
        block, last = stream[start : start + BLOCK], found[start : start + BLOCK][-1]
        sides = [[value for is_variant, value in block if is_variant is side] for side in (False, True)]
        assert len(last) == (min(map(len, sides)) if len(block) == BLOCK else 0)
        assert not any(found[start : start + len(block) - 1])
        if len(sides[0]) == len(sides[1]) == BLOCK // 2:
            assert sum(last) == sum(sides[1]) - sum(sides[0])
    again = Pairing()
    assert [again.add(value, of_variant=is_variant) for is_variant, value in stream] == found


# -- shares


def test_shares_that_fit_are_seldom_doubted() -> None:
    """Of 1,000 experiments with the right shares, looked at 100 times each, at most 1 % are doubted at 1 %."""
    rng, doubted = random.Random(2), 0
    for _ in range(1_000):
        counts = [0, 0, 0]
        for _look in range(100):
            for number in rng.choices(range(3), (1, 1, 2), k=10):
                counts[number] += 1
            if split_evidence(counts, (1, 1, 2)) < 0.01:
                doubted += 1
                break
    assert doubted <= 10


@pytest.mark.parametrize(
    ("counts", "weights", "is_doubted"),
    [
        ((600, 400), (1, 1), True),
        ((60, 40), (1, 1), False),
        ((0, 0), (1, 1), False),
        ((100, 0), (1, 0), False),
        ((100, 1), (1, 0), True),
        ((1_000_000, 100), (1, 1), True),
        ((500_000, 500_000), (1, 1), False),
    ],
)
def test_shares(counts: tuple[int, ...], weights: tuple[float, ...], *, is_doubted: bool) -> None:
    """Shares far from the weights are found, and a variant without a weight has nobody."""
    assert (split_evidence(counts, weights) < 0.01) is is_doubted
