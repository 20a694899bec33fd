"""What a run has measured, kept as JSON."""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from bench.sampling import Sample

LOUD = 0.35
"""Cores that others kept busy: a round with more of it says little."""

DIRECT = "direct"
"""The upstream itself: what everything else adds to is measured by it."""

Round = dict[str, Sample]
"""Samples by target, taken one after the other."""


@dataclass(frozen=True)
class Start:
    """A server's fresh starts. ``after_mb`` is its memory after a hundred pictures of 10 MB, ``idle_mb`` before."""

    seconds: float
    idle_mb: float
    after_mb: float


@dataclass
class Results:
    """Rounds by scenario, and what was measured of servers alone; ``one_core`` are rounds of targets on one core."""

    rounds: dict[str, list[Round]] = field(default_factory=dict)
    one_core: list[Round] = field(default_factory=list)
    starts: dict[str, Start] = field(default_factory=dict)
    import_s: float | None = None
    missing: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    dropped: int = 0
    checks: dict[str, dict[str, tuple[bool, str]]] = field(default_factory=dict)
    machine: dict[str, Any] = field(default_factory=dict)

    def targets(self) -> list[str]:
        """Return everybody who was measured, in order."""
        every = (name for rounds in (*self.rounds.values(), self.one_core) for each in rounds for name in each)
        return list(dict.fromkeys([*every, *self.starts]))

    def median(self, scenario: str, target: str, figure: str) -> float | None:
        """Return the median of a figure over the rounds."""
        return middle(sample.get(figure) for sample in self.samples(scenario, target))

    def samples(self, scenario: str, target: str) -> list[Sample]:
        """Return a target's samples."""
        return [each[target] for each in self.rounds.get(scenario, ()) if target in each]

    def added(self, scenario: str, target: str, figure: str) -> float | None:
        """Return the median of what a target adds to the upstream's own figure in the same round."""
        return self._beside(scenario, target, DIRECT, figure, lambda own, direct: own - direct)

    def ratio(self, scenario: str, target: str, reference: str, figure: str) -> float | None:
        """Return the median of how a target's figure stands to another one's in the same round."""
        return self._beside(scenario, target, reference, figure, lambda own, its: own / its if its else None)

    def _beside(
        self, scenario: str, target: str, other: str, figure: str, compare: Callable[[float, float], float | None]
    ) -> float | None:
        pairs = [
            (each[target].get(figure), each[other].get(figure))
            for each in self.rounds.get(scenario, ())
            if target in each and other in each
        ]
        return middle(compare(own, its) for own, its in pairs if own is not None and its is not None)

    # -- on disk

    def to_json(self) -> str:
        """Return everything as JSON."""
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> Results:
        """Read what ``to_json`` wrote."""
        told = json.loads(text)
        rounds = {name: [_round(each) for each in rounds] for name, rounds in told.pop("rounds").items()}
        one_core = [_round(each) for each in told.pop("one_core")]
        starts = {name: Start(**start) for name, start in told.pop("starts").items()}
        checks = {
            server: {name: (bool(passed), str(seen)) for name, (passed, seen) in found.items()}
            for server, found in told.pop("checks").items()
        }
        return cls(rounds=rounds, one_core=one_core, starts=starts, checks=checks, **told)


def _round(told: Mapping[str, Any]) -> Round:
    return {target: Sample(**sample) for target, sample in told.items()}


def middle(values: Iterator[float | None]) -> float | None:
    """Return the median of those that there are."""
    present = [value for value in values if value is not None]
    return statistics.median(present) if present else None


def quietest(rounds: list[Round], count: int) -> list[Round]:
    """Return the ``count`` rounds in which others were least busy, in their order."""
    kept = sorted(range(len(rounds)), key=lambda at: loudness(rounds[at]))[:count]
    return [rounds[at] for at in sorted(kept)]


def loudness(samples: Round) -> float:
    """Return how many cores others kept busy in the loudest sample of a round."""
    return max((sample.others for sample in samples.values()), default=0.0)


def machine() -> dict[str, Any]:
    """Return on what is measured."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        "cores": len(os.sched_getaffinity(0)),
        "cpu": names[0] if names else platform.machine(),
        "kernel": ".".join(platform.release().split(".")[:2]),
        "python": platform.python_version(),
    }
