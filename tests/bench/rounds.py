"""The order in which everything is measured: interleaved, so that a drift of the machine is everybody's."""

from __future__ import annotations

import contextlib
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bench import rolecalls
from bench.behaviour import Situation, findings
from bench.processes import on_cores
from bench.programs import Mock, Programs
from bench.results import DIRECT, LOUD, Results, Round, Start, loudness, quietest
from bench.running import NotReady, Running, Target, running
from bench.sampling import Bench, NoSample
from bench.scenarios import NS32, SCENARIOS, ST32, STSAT, UP1, Scenario
from bench.servers import Server

Say = Callable[[str], None]

CORE = "core"
ALONE = "alone"
CHECKS = "checks"
"""Not loads on servers that run beside each other, but each of them on one core, each of them alone, and behaviour."""

EVERYTHING = (*SCENARIOS, CORE, ALONE, CHECKS)

FOR_ALL = (NS32, ST32, STSAT, UP1)
"""The loads in which those aside take part, too."""

MEMORY_LOAD = Scenario("memory", "upload", "a picture of 10 MB, four at a time", 4, count=100)
SETTLE_S = 1.0

_IMPORT = """
import time
began = time.perf_counter()
from typer.main import get_command
from rolecall.cli import app
get_command(app).get_command(None, "serve")
print(time.perf_counter() - began)
"""


@dataclass(frozen=True)
class Plan:
    """What is measured. At most ``extra`` rounds are taken in place of loud ones, and none after ``patience_s``."""

    servers: Sequence[Server]
    scenarios: Sequence[str]
    rounds: int = 3
    extra: int = 2
    patience_s: float = 240.0
    seconds: float = 1.0
    starts: int = 4


class Measuring:
    """Takes the samples of a plan into ``results``; ``say`` is told what is being done."""

    def __init__(self, plan: Plan, programs: Programs, folder: Path, results: Results, say: Say) -> None:
        self._plan = plan
        self._programs = programs
        self._folder = folder
        self._results = results
        self._say = say
        self._began = time.monotonic()

    def all(self) -> None:
        """Measure everything."""
        if set(self._plan.scenarios) - {CORE, ALONE}:
            self._beside_each_other()
        if CORE in self._plan.scenarios:
            self._on_one_core()
        if ALONE in self._plan.scenarios:
            self._alone()

    def _beside_each_other(self) -> None:
        with self._servers("run") as (bench, servers):
            targets = _targets(servers, bench.mock)
            for scenario in (SCENARIOS[name] for name in self._plan.scenarios if name in SCENARIOS):
                self._results.rounds[scenario.name] = self._rounds(bench, targets, scenario)
            if CHECKS in self._plan.scenarios:  # behind the loads: what is left hanging would be in their way
                for server in (each for each in servers if not each.server.is_aside):
                    self._results.checks[server.server.name] = self._check(server, bench.mock)

    def _check(self, server: Running, mock: Mock) -> dict[str, tuple[bool, str]]:
        situation = Situation(server.target(), mock, is_ours=server.server.name in rolecalls.NAMES)
        seen: dict[str, tuple[bool, str]] = {}
        for check, finding in findings(situation):
            self._say(f"{server.server.name}: {check.about}")
            seen[check.name] = finding.passed, finding.seen
        return seen

    @contextlib.contextmanager
    def _servers(self, name: str, cores: set[int] | None = None) -> Iterator[tuple[Bench, list[Running]]]:
        """Run an upstream and all servers, those on ``cores``."""
        with contextlib.ExitStack() as held:
            mock = held.enter_context(Mock(self._programs))
            started: list[Running] = []
            for server in self._plan.servers:
                self._say(f"starting {server.name}")
                with self._noting_failure():
                    started.append(
                        held.enter_context(running(server, self._folder / name / server.name, mock.port, cores=cores))
                    )
            yield Bench(self._programs, mock, self._folder), started

    @contextlib.contextmanager
    def _noting_failure(self) -> Iterator[None]:
        try:
            yield
        except (NotReady, NoSample) as error:
            if str(error) not in self._results.failed:
                self._results.failed.append(str(error))

    def _rounds(self, bench: Bench, targets: Sequence[Target], scenario: Scenario) -> list[Round]:
        """Take rounds until enough of them are quiet; each begins with another target, slow ones are in the first."""
        taken: list[Round] = []
        targets = [each for each in targets if not each.is_aside or scenario in FOR_ALL]
        wanted = self._plan.rounds
        while len(taken) < wanted or self._is_worth_another(taken):
            first = len(taken) % len(targets)
            order = [each for each in [*targets[first:], *targets[:first]] if not (each.is_slow and taken)]
            taken.append(self._round(bench, order, scenario, len(taken) + 1))
        self._results.dropped += max(0, len(taken) - wanted)
        slow = {each.name: taken[0][each.name] for each in targets if each.is_slow and each.name in taken[0]}
        kept = quietest(taken, wanted)
        return [{**slow, **kept[0]}, *kept[1:]]

    def _is_worth_another(self, taken: Sequence[Round]) -> bool:
        quiet = sum(loudness(each) <= LOUD for each in taken)
        is_late = time.monotonic() - self._began > self._plan.patience_s
        return quiet < self._plan.rounds and len(taken) < self._plan.rounds + self._plan.extra and not is_late

    def _round(self, bench: Bench, targets: Sequence[Target], scenario: Scenario, number: int) -> Round:
        samples: Round = {}
        for target in targets:
            self._say(f"{scenario.name}, round {number}: {target.name}")
            with self._noting_failure():
                samples[target.name] = bench.sample(target, scenario, self._plan.seconds)
        return samples

    def _on_one_core(self) -> None:
        """Have all servers on one core, upstream and clients on the others."""
        cores = os.sched_getaffinity(0)
        if len(cores) < 2:
            self._results.missing.append("one core: there is only one, which the upstream and the clients would share")
            return
        one = {max(cores)}
        with on_cores(cores - one), self._servers("core", one) as (bench, servers):
            targets = _targets(servers, bench.mock)
            self._results.one_core = self._rounds(bench, targets, NS32)

    def _alone(self) -> None:
        """Start each server afresh some times, and send pictures to the last one started."""
        for server in (each for each in self._plan.servers if not each.is_aside):
            with Mock(self._programs) as mock, self._noting_failure():
                bench = Bench(self._programs, mock, self._folder)
                self._results.starts[server.name] = self._start_alone(server, bench)
        self._results.import_s = _import_s(self._plan.starts)

    def _start_alone(self, server: Server, bench: Bench) -> Start:
        seconds: list[float] = []
        for number in range(1 if server.is_slow else self._plan.starts):
            self._say(f"start {number + 1}: {server.name}")
            with running(server, self._folder / "alone" / server.name, bench.mock.port, quiet_s=0.1) as fresh:
                seconds.append(fresh.started_s)
        with running(server, self._folder / "alone" / server.name, bench.mock.port) as fresh:
            self._say(f"100 bodies of 10 MB: {server.name}")
            sample = bench.sample(replace(fresh.target(), is_slow=False), MEMORY_LOAD, 0)
            time.sleep(SETTLE_S)
            after_mb = fresh.tree.rss_mb()
            if sample.failures:
                raise NoSample(f"{server.name}: {sample.failures} of 100 bodies of 10 MB were not answered")
            return Start(statistics.median([*seconds, fresh.started_s]), fresh.idle_mb, after_mb)


def _targets(servers: Sequence[Running], mock: Mock) -> list[Target]:
    """Return whom loads are sent to: the upstream, each server, and rolecall by name and by role."""
    targets = [Target(DIRECT, mock.port)]
    for server in servers:
        if server.server.name == rolecalls.FULL_NAME:
            targets += [server.target(model=rolecalls.ROLE), server.target(rolecalls.BY_NAME)]
        else:
            targets.append(server.target())
    return targets


def _import_s(times: int) -> float:
    """Return how long it takes to import what `rolecall serve` imports, as the command does it."""
    runs = [subprocess.run([sys.executable, "-c", _IMPORT], capture_output=True, check=True) for _ in range(times)]
    return statistics.median(float(run.stdout) for run in runs)
