# ruff: noqa: INP001, T201, S311, FBT001 - a script to be read, with seeded numbers
"""How often the test of experiments finds what is not there, and how soon what is: the tables of docs/experiments.md.

    python benchmarks/experiments.py

Each row is 1,000 experiments, seeded, that are looked at 100 times, at equal steps; who looks, stops at the first
difference that is established. "naive" is the same look by a test for one look: a difference of more than 1.96 standard
errors.
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


def units(shift: float) -> Draw:
    """Return means of keys with 1 to 30 requests: each has a level of its own (1), and noise (0.5)."""

    def draw(rng: random.Random, is_variant: bool) -> float:
        level = rng.gauss(shift if is_variant else 0.0, 1.0)
        return level + rng.gauss(0.0, 0.5) / math.sqrt(rng.choice((1, 1, 2, 5, 30)))

    return draw


def one(draw: Draw, rng: random.Random, observations: int, weight: float) -> tuple[int | None, bool]:
    """Return after how many observations the difference was established, and whether a naive look ever was."""
    pairing, evidence, naive = Pairing(), Evidence(), False
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


def _is_naively_found(control: list[float], variant: list[float]) -> bool:
    if min(control[0], variant[0]) < 10:
        return False
    (n, s, q), (m, t, r) = control, variant
    variance = (q / n - (s / n) ** 2) / n + (r / m - (t / m) ** 2) / m
    return variance > 0 and abs(t / m - s / n) > 1.96 * math.sqrt(variance)


ROWS: list[tuple[str, Draw, int, float]] = [
    ("no difference: success 90 %", binary(0.9, 0.9), 2_000, 0.5),
    ("no difference: success 99 %", binary(0.99, 0.99), 10_000, 0.5),
    ("no difference: lognormal durations, sigma 1", lognormal(1, 1), 2_000, 0.5),
    ("no difference: the same, shares 9 to 1", lognormal(1, 1), 2_000, 0.1),
    ("no difference: durations that drift by a factor of 7, sigma 0.1", drifting(0.1), 2_000, 0.5),
    ("no difference: keys with 1 to 30 requests", units(0), 1_000, 0.5),
    ("success 90 % and 80 %", binary(0.9, 0.8), 4_000, 0.5),
    ("success 99 % and 97 %", binary(0.99, 0.97), 10_000, 0.5),
    ("20 % slower, sigma 0.5", lognormal(1.2, 0.5), 2_000, 0.5),
    ("20 % slower, sigma 0.5, shares 9 to 1", lognormal(1.2, 0.5), 10_000, 0.1),
    ("10 % slower, sigma 0.5", lognormal(1.1, 0.5), 5_000, 0.5),
    ("keys, half a standard deviation apart", units(0.5), 2_000, 0.5),
]


def main() -> None:
    """Print the table."""
    print("| experiments | found | naive | half of them after | nine of ten after |")
    print("|---|---|---|---|---|")
    for name, draw, observations, weight in ROWS:
        rng = random.Random(1)
        results = [one(draw, rng, observations, weight) for _ in range(EXPERIMENTS)]
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
