# ruff: noqa: INP001 - a script of its own
"""How long one decision takes: 50 models on 4 GPUs, 1,000 requests waiting; the whole of ``Scheduler.handle``.

    python benchmarks/decision.py [--models 50] [--waiters 1000] [--rounds 300] [--json]

A scheduler is brought into the state to be measured: some models fit, all have waiters, one load is under way on each
GPU. Then events come as they would in operation: requests arrive and leave, answers end, engines become ready, stop and
free their memory, time passes. The queue is kept at its length. Prints the median and the 95th percentile by kind of
event, and over all events; times in µs.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import random
import sys
from collections import defaultdict
from collections.abc import Iterator
from statistics import median
from time import perf_counter_ns

from rolecall.core.events import (
    Arrived,
    BecameReady,
    Cancelled,
    Configured,
    Effect,
    Event,
    Exited,
    Freed,
    Grant,
    Released,
    Spec,
    Start,
    Stop,
    Tick,
)
from rolecall.core.models import ModelEntry
from rolecall.core.scheduler import Scheduler
from rolecall.core.selection import Demand, Rules
from rolecall.core.vram import Device

ROLES = ("caption", "keywords", "description", "chat", "code")
GPU_MB = 22_528
GPUS = 4
STEP_S = 0.05
LIMIT_US = 1000


def specs(count: int, draw: random.Random) -> tuple[Spec, ...]:
    """Return models of 2 to 16 GB, each with two roles."""
    return tuple(
        Spec(
            ModelEntry.model_validate(
                {
                    "name": f"model-{number:02}",
                    "backend": "simulated",
                    "role_priority": {role: draw.randint(50, 95) for role in draw.sample(ROLES, 2)},
                }
            ),
            footprint_mb=draw.randint(2_000, 16_000),
            max_parallel=4,
            idle_unload_s=300,
            load_s=draw.uniform(3, 20),
        )
        for number in range(count)
    )


class Load:
    """Keeps a scheduler busy and measures every event that it handles."""

    def __init__(self, models: int, waiters: int) -> None:
        self.draw = random.Random(1)  # noqa: S311 - the same load each time
        self.specs = specs(models, self.draw)
        self.waiters = waiters
        self.scheduler = Scheduler(max_overtake_s=20, max_queue=10 * waiters)
        self.now = 0.0
        self.times_us: dict[str, list[float]] = defaultdict(list)
        self.waiting: dict[int, None] = {}
        self.pending: list[Event] = []
        self.answering: list[str] = []
        self.ids = itertools.count()
        devices = tuple(Device(f"gpu{index}", GPU_MB, GPU_MB, index) for index in range(GPUS))
        budget_mb = GPUS * GPU_MB
        self.post(Configured(self.specs, Rules(limit_mb=budget_mb, tolerance=5), devices, budget_mb, models))

    def post(self, event: Event) -> None:
        """Let one event be handled, and note how long that took and what is to be done."""
        began = perf_counter_ns()
        effects = self.scheduler.handle(event, self.now)
        self.times_us[type(event).__name__].append((perf_counter_ns() - began) / 1000)
        for effect in effects:
            self._note(effect)

    def _note(self, effect: Effect) -> None:
        match effect:
            case Start(model):
                self.pending.append(BecameReady(model, self.draw.uniform(3, 20)))
            case Stop(model):
                self.pending += [Exited(model), Freed(model)]
            case Grant(waiter, model):
                del self.waiting[waiter]
                self.answering.append(model)
            case _:
                raise AssertionError(effect)

    def arrive(self) -> None:
        """Let a request come, half of them for a role."""
        waiter = next(self.ids)
        self.waiting[waiter] = None
        spec = self.draw.choice(self.specs)
        role = self.draw.choice(ROLES)
        if self.draw.random() < 0.5:
            self.post(Arrived(waiter, Demand(), (spec.name,)))
        else:
            names = tuple(known.name for known in self.specs if role in known.entry.priorities)
            self.post(Arrived(waiter, Demand(role), names))

    def fill(self) -> None:
        """Fill the queue."""
        while len(self.waiting) < self.waiters:
            self.now += STEP_S / 10
            self.arrive()

    def step(self) -> None:
        """Let one thing of each kind happen."""
        self.now += STEP_S
        self.fill()
        leaves = next(iter(self.waiting))
        del self.waiting[leaves]
        self.post(Cancelled(leaves))
        self.post(Tick())
        if self.answering:
            self.post(Released(self.answering.pop(self.draw.randrange(len(self.answering)))))
        if self.pending and self.draw.random() < 0.2:
            event = self.pending.pop(0)
            self.post(event)
            if isinstance(event, Exited):
                self.post(self.pending.pop(0))


def percentile(values: list[float], percent: int) -> float:
    """Return the smallest value that ``percent`` of them do not exceed."""
    return sorted(values)[max(0, -(-len(values) * percent // 100) - 1)]


def rows(times_us: dict[str, list[float]]) -> Iterator[tuple[str, int, float, float]]:
    """Yield kind, number, median and 95th percentile, all events at the end."""
    for kind, values in sorted(times_us.items()):
        yield kind, len(values), median(values), percentile(values, 95)
    every = [value for values in times_us.values() for value in values]
    yield "all", len(every), median(every), percentile(every, 95)


def main() -> int:
    """Measure and print; exit code 1 if the median over all events is above 1 ms."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=50)
    parser.add_argument("--waiters", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    load = Load(options.models, options.waiters)
    load.fill()
    load.times_us.clear()
    gc.collect()
    for _ in range(options.rounds):
        load.step()
    found = list(rows(load.times_us))
    if options.json:
        result = {kind: {"events": n, "median_us": p50, "p95_us": p95} for kind, n, p50, p95 in found}
        sys.stdout.write(json.dumps(result) + "\n")
    else:
        sys.stdout.write(f"{'event':<14}{'number':>8}{'median µs':>12}{'p95 µs':>10}\n")
        for kind, n, p50, p95 in found:
            sys.stdout.write(f"{kind:<14}{n:>8}{p50:>12.0f}{p95:>10.0f}\n")
    return int(found[-1][2] > LIMIT_US)


if __name__ == "__main__":
    sys.exit(main())
