# ruff: noqa: INP001, T201, S311, FBT001 - a script to be read, with seeded numbers
"""How often the test of experiments finds what is not there, and how soon what is: the tables of docs/experiments.md.

    python benchmarks/experiments.py

Each row is 1,000 experiments, seeded, that are looked at 100 times, at equal steps; who looks, stops at the first
difference that is established. "naive" is the same look by a test for one look: a difference of more than 1.96 standard
errors.

In two rows what there is at a look does not only add to what there was: a log that was rotated has lost lines, and
scores come late. There "naive" is the same test of the lines that are left, and of the scores in the order of their
requests.
"""

from __future__ import annotations

import itertools
import math
import random
import statistics
from collections.abc import Callable

from rolecall.core.sequential import ALPHA, Evidence, Pairing

EXPERIMENTS, PEEKS = 1_000, 100
Draw = Callable[[random.Random, bool], float]
Value = tuple[bool, float]
"""Whether it is the variant's, and what it is."""


def binary(control: float, variant: float) -> Draw:
    """Return successes."""
    return lambda rng, is_variant: float(rng.random() < (variant if is_variant else control))


def lognormal(factor: float, sigma: float) -> Draw:
    """Return logarithms of durations, which the variant multiplies by a factor."""
    return lambda rng, is_variant: rng.gauss(math.log(factor) if is_variant else 0.0, sigma)


def drifting(sigma: float) -> Draw:
    """Return logarithms of durations that rise and fall by a factor of 7 within 1,200 requests, for both alike."""
    numbers = itertools.count()
    return lambda rng, _: math.sin(next(numbers) / 200) + rng.gauss(0.0, sigma)


def lopsided(sigma: float, factor: float, share: float) -> Draw:
    """Return logarithms of durations of which the variant has a share so much longer, and the same mean."""
    much = math.log(factor)
    return lambda rng, is_variant: (
        rng.gauss(0.0, sigma) + (much * ((rng.random() < share) - share) if is_variant else 0.0)
    )


def steady(score: float) -> Draw:
    """Return scores that are always the same for the control, and 1 or 0 with the same mean for the variant."""
    return lambda rng, is_variant: float(rng.random() < score) if is_variant else score


def laplace(factor: float) -> Draw:
    """Return logarithms of durations with heavy tails (Pareto, 2), which the variant multiplies by a factor."""
    return lambda rng, is_variant: math.log(rng.paretovariate(2) * (factor if is_variant else 1.0))


def units(shift: float) -> Draw:
    """Return means of keys with 1 to 30 requests: each has a level of its own (1), and noise (0.5)."""

    def draw(rng: random.Random, is_variant: bool) -> float:
        level = rng.gauss(shift if is_variant else 0.0, 1.0)
        return level + rng.gauss(0.0, 0.5) / math.sqrt(rng.choice((1, 1, 2, 5, 30)))

    return draw


def one(name: str, draw: Draw, rng: random.Random, observations: int, weight: float) -> tuple[int | None, bool]:
    """Return after how many observations the difference was established, and whether a naive look ever was."""
    pairing, evidence, naive = Pairing(), Evidence(of_yes_or_no="success" in name), False
    sums = {side: [0.0, 0.0, 0.0] for side in (False, True)}
    for look in range(1, PEEKS + 1):
        for _ in range(observations // PEEKS):
            is_variant = rng.random() < weight
            value = draw(rng, is_variant)
            for difference in pairing.add(value, of_variant=is_variant):
                evidence.add(difference)
            for index, power in enumerate((1.0, value, value * value)):
                sums[is_variant][index] += power
        naive = naive or _is_naively_found(sums[False], sums[True])
        if evidence.p_value <= ALPHA:
            return look * observations // PEEKS, naive
    return None, naive


def rotated(rng: random.Random, observations: int, kept: int = 500) -> tuple[int | None, bool]:
    """Return the same for durations (sigma 1) in a log that keeps so many: nothing is said once it has lost some."""
    values: list[Value] = []
    at, naive = None, False
    for count in range(observations // PEEKS, observations + 1, observations // PEEKS):
        values += [(rng.random() < 0.5, rng.gauss(0.0, 1.0)) for _ in range(observations // PEEKS)]
        is_found = _finds(values[-kept:])
        naive = naive or is_found
        if at is None and is_found and count <= kept:
            at = count
    return at, naive


def late(rng: random.Random, observations: int, delay: float = 200) -> tuple[int | None, bool]:
    """Return the same for scores of 60 % that come so many requests after theirs, on average."""
    given = sorted((number + rng.expovariate(1 / delay), number) for number in range(observations))
    values = [(rng.random() < 0.5, float(rng.random() < 0.6)) for _ in range(observations)]
    at, naive = None, False
    for count in range(observations // PEEKS, observations + 1, observations // PEEKS):
        known = [number for when, number in given if when < count]
        if at is None and _finds([values[number] for number in known]):
            at = count
        naive = naive or _finds([values[number] for number in sorted(known)])
    return at, naive


def _finds(values: list[Value]) -> bool:
    pairing, evidence = Pairing(), Evidence()
    for is_variant, value in values:
        for difference in pairing.add(value, of_variant=is_variant):
            evidence.add(difference)
    return evidence.p_value <= ALPHA


def _is_naively_found(control: list[float], variant: list[float]) -> bool:
    if min(control[0], variant[0]) < 10:
        return False
    (n, s, q), (m, t, r) = control, variant
    variance = (q / n - (s / n) ** 2) / n + (r / m - (t / m) ** 2) / m
    return variance > 0 and abs(t / m - s / n) > 1.96 * math.sqrt(variance)


Look = Callable[[random.Random, int], tuple[int | None, bool]]
REPORTED: list[tuple[str, Look, int]] = [
    ("no difference: durations, sigma 1, a log that keeps 500", rotated, 5_000),
    ("no difference: scores of 60 % that come 200 requests late", late, 1_500),
]
ROWS: list[tuple[str, Draw, int, float]] = [
    ("no difference: success 90 %", binary(0.9, 0.9), 2_000, 0.5),
    ("no difference: success 99 %", binary(0.99, 0.99), 10_000, 0.5),
    ("no difference: lognormal durations, sigma 1", lognormal(1, 1), 2_000, 0.5),
    ("no difference: the same, shares 9 to 1", lognormal(1, 1), 2_000, 0.1),
    ("no difference: durations that drift by a factor of 7, sigma 0.1", drifting(0.1), 2_000, 0.5),
    ("no difference: keys with 1 to 30 requests", units(0), 1_000, 0.5),
    ("no difference of means: score 0.9, and 1 or 0", steady(0.9), 2_000, 0.5),
    ("no difference of means: score 0.95, and 1 or 0", steady(0.95), 2_000, 0.5),
    ("no difference of means: score 0.99, and 1 or 0", steady(0.99), 8_000, 0.5),
    ("no difference of means: one in 25 is 25 times slower, sigma 0.1", lopsided(0.1, 25, 0.04), 4_000, 0.5),
    ("no difference of means: one in 25 is 25 times slower, sigma 0.3", lopsided(0.3, 25, 0.04), 4_000, 0.5),
    ("no difference of means: one in 100 is 25 times slower, sigma 0.1", lopsided(0.1, 25, 0.01), 8_000, 0.5),
    ("success 90 % and 80 %", binary(0.9, 0.8), 4_000, 0.5),
    ("success 99 % and 97 %", binary(0.99, 0.97), 10_000, 0.5),
    ("20 % slower, sigma 0.5", lognormal(1.2, 0.5), 2_000, 0.5),
    ("20 % slower, sigma 0.5, shares 9 to 1", lognormal(1.2, 0.5), 10_000, 0.1),
    ("10 % slower, sigma 0.5", lognormal(1.1, 0.5), 5_000, 0.5),
    ("20 % slower, heavy tails", laplace(1.2), 2_000, 0.5),
    ("2.7 times as slow, sigma 1", lognormal(math.e, 1), 1_000, 0.5),
    ("keys, half a standard deviation apart", units(0.5), 2_000, 0.5),
]


def main() -> None:
    """Print the table."""
    print("| experiments | found | naive | half of them after | nine of ten after |")
    print("|---|---|---|---|---|")
    for name, draw, observations, weight in ROWS:
        rng = random.Random(1)
        tell(name, [one(name, draw, rng, observations, weight) for _ in range(EXPERIMENTS)])
    for name, look, observations in REPORTED:
        rng = random.Random(1)
        tell(name, [look(rng, observations) for _ in range(EXPERIMENTS)])


def tell(name: str, results: list[tuple[int | None, bool]]) -> None:
    """Print a row."""
    found = [count for count, _ in results if count is not None]
    naive = sum(is_found for _, is_found in results)
    share = len(found) / EXPERIMENTS
    padded = sorted(found) + [math.inf] * (EXPERIMENTS - len(found))
    half, most = statistics.median_low(padded), padded[int(0.9 * EXPERIMENTS) - 1]
    times = " | ".join(f"{int(at):,}" if math.isfinite(at) else "-" for at in (half, most))
    shown = f"{naive / EXPERIMENTS:.1%}" if name.startswith("no ") else "-"
    print(f"| {name} | {share:.1%} | {shown} | {times} |", flush=True)


if __name__ == "__main__":
    main()
