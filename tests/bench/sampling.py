"""One load on one target: what the client saw, and what it cost the target."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.processes import Tree, machine_busy_s
from bench.programs import Mock, Programs
from bench.running import PATH, Target
from bench.scenarios import Scenario

_MOST_S = 120.0
_DRAIN_S = 10.0
_PUT_OFF_S = 0.1
_PUT_OFF_SHARE = 0.15
"""A target that uses less of a core than that has finished what it put off."""


@dataclass(frozen=True)
class Sample:
    """One load. ``load`` is what the client printed, ``others`` the cores that neither it nor we kept busy.

    Work that was put off (the request log) is in ``cpu_s``, and so is that for the requests of the warm-up.
    """

    load: Mapping[str, float]
    cpu_s: float
    others: float
    rss_mb: float

    @property
    def cpu_ms_per_request(self) -> float:
        """Of the target's whole process tree."""
        return self.cpu_s * 1000 / self.load["sent"] if self.load["sent"] else 0.0

    @property
    def cpu_ms_per_chunk(self) -> float:
        """The same, by chunk."""
        return self.cpu_s * 1000 / self.load["all_events"] if self.load["all_events"] else 0.0

    @property
    def cores(self) -> float:
        """How many the target kept busy."""
        return self.cpu_s / self.load["elapsed"]

    @property
    def chunks_per_read(self) -> float:
        """Above 1, several chunks came at once: somebody held them back, or the kernel did."""
        return self.load["events"] / self.load["reads"] if self.load["reads"] else 0.0

    @property
    def failures(self) -> int:
        """Answers that were none."""
        return int(sum(self.load[name] for name in ("errors", "truncated", "bad_status", "no_done")))

    def get(self, name: str) -> float | None:
        """Return a figure by name, one of the client's or one of the above."""
        value: Any = getattr(self, name) if hasattr(self, name) else self.load.get(name)
        return None if value is None else float(value)


class NoSample(Exception):
    """The load program failed."""


@dataclass(frozen=True)
class Bench:
    """The upstream, the load program, and a folder for bodies."""

    programs: Programs
    mock: Mock
    folder: Path

    def sample(self, target: Target, scenario: Scenario, seconds: float) -> Sample:
        """Send one load; raises ``NoSample``."""
        argv = self._argv(target, scenario, seconds)
        mock = Tree(self.mock.process.pid)
        cpu, ours, busy, began = target.cpu_s(), mock.cpu_s(), machine_busy_s(), time.perf_counter()
        try:
            done = subprocess.run(argv, capture_output=True, text=True, timeout=_MOST_S, check=False)
        except subprocess.TimeoutExpired:
            raise NoSample(f"{target.name} did not answer {scenario.name} in {_MOST_S:g} s") from None
        wall = time.perf_counter() - began
        if done.returncode:
            raise NoSample(f"{target.name}, {scenario.name}: {done.stderr.strip()[-300:]}")
        load: dict[str, float] = json.loads(done.stdout)
        ours = mock.cpu_s() - ours + load["client_cpu"] + target.cpu_s() - cpu
        others = max(0.0, machine_busy_s() - busy - ours) / wall
        self.mock.is_drained(_DRAIN_S)
        return Sample(load, self._rested(target) - cpu, others, target.rss_mb())

    def _argv(self, target: Target, scenario: Scenario, seconds: float) -> list[str]:
        scenario = scenario.shortened() if target.is_slow else scenario
        body = self.folder / f"{scenario.name}-{scenario.tokens}-{target.model.replace(':', '-')}.json"
        if not body.exists():
            body.write_bytes(scenario.body(target.model))
        headers = [word for pair in target.headers.items() for word in ("-H", ": ".join(pair))]
        options = [*scenario.arguments(seconds), *headers]
        return [str(self.programs.load), str(target.port), PATH, "-b", str(body), *options]

    def _rested(self, target: Target) -> float:
        """Wait until the target is at rest, and return its CPU time."""
        if target.tree is None:
            return 0.0
        until = time.monotonic() + _DRAIN_S
        cpu = target.cpu_s()
        while True:
            time.sleep(_PUT_OFF_S)
            now = target.cpu_s()
            if now - cpu < _PUT_OFF_S * _PUT_OFF_SHARE or time.monotonic() > until:
                return now
            cpu = now
