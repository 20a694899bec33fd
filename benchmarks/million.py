# ruff: noqa: INP001 - a script of its own
"""A million requests: what a rolecall holds on the way, with everything on and clients that stay.

    python benchmarks/million.py [--requests 1000000] [--parts 20] [--connections 32] [--json]

The upstream and the clients are those of ``make bench``, written in C. Every tenth request is a stream of 64 chunks.
Memory is looked at after each part. Exit code 1 if it grew by more than 2 MB in the second half, or an answer failed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from bench import rolecalls
from bench.programs import Mock, Programs, build
from bench.running import MODEL, PATH, Target, running
from bench.scenarios import NS32, STBURST, Scenario

LIMIT_MB = 2.0
STREAMS = 10
"""One request in so many is a stream."""


class Sight(NamedTuple):
    """What was seen after a part; CPU time and requests are of the part alone."""

    requests: int
    rss_mb: float
    failed: int
    cpu_us: float
    per_s: float


class Run(NamedTuple):
    """A rolecall, and who asks it."""

    program: Path
    target: Target
    connections: int
    folder: Path

    def load(self, scenario: Scenario, count: int) -> int:
        """Send so many requests, and return how many failed."""
        body = self.folder / f"{scenario.name}.json"
        body.write_bytes(scenario.body(MODEL))
        words = [self.program, str(self.target.port), PATH, "-b", body, "-c", str(self.connections), "-n", str(count)]
        words += ["-s"] if scenario.kind == "stream" else []
        words += [word for name, value in self.target.headers.items() for word in ("-H", f"{name}: {value}")]
        told = json.loads(subprocess.run(words, capture_output=True, text=True, check=True).stdout)
        return sum(int(told[name]) for name in ("errors", "truncated", "bad_status", "no_done"))

    def part(self, before: Sight, count: int) -> Sight:
        """Send the requests of a part and look."""
        began, cpu_s, streams = time.monotonic(), self.target.cpu_s(), count // STREAMS
        failed = self.load(NS32, count - streams) + self.load(STBURST, streams)
        took_s, cpu_s = time.monotonic() - began, self.target.cpu_s() - cpu_s
        return Sight(before.requests + count, self.target.rss_mb(), failed, cpu_s / count * 1e6, count / took_s)


def sights(programs: Programs, folder: Path, options: argparse.Namespace) -> Iterator[Sight]:
    """Yield what is seen on the way."""
    with Mock(programs) as mock, running(rolecalls.full(), folder / "rolecall", mock.port) as server:
        run = Run(programs.load, server.target(), options.connections, folder)
        sight = Sight(0, server.idle_mb, 0, 0, 0)
        yield sight
        for _ in range(options.parts):
            sight = run.part(sight, options.requests // options.parts)
            yield sight


def problems(seen: list[Sight]) -> list[str]:
    """Say what is not as it should be."""
    half = [sight.rss_mb for sight in seen[len(seen) // 2 :]]
    quarter = max(1, len(half) // 2)
    growth_mb = statistics.median(half[-quarter:]) - statistics.median(half[:quarter])
    failed = sum(sight.failed for sight in seen)
    found = [f"in the second half memory grew by {growth_mb:.1f} MB"] if growth_mb > LIMIT_MB else []
    return [*found, f"{failed} answers failed"] if failed else found


def main() -> int:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=1_000_000)
    parser.add_argument("--parts", type=int, default=20)
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    seen: list[Sight] = []
    with tempfile.TemporaryDirectory() as folder:
        for sight in sights(build(Path(folder)), Path(folder), options):
            seen.append(sight)
            if not options.json:
                sys.stdout.write(row(sight) if sight.requests else f"idle {sight.rss_mb:27.1f} MB\n")
                sys.stdout.flush()
    found = problems(seen)
    if options.json:
        told: dict[str, Any] = {"seen": [sight._asdict() for sight in seen], "problems": found}
        sys.stdout.write(json.dumps(told) + "\n")
    sys.stderr.writelines(f"{problem}\n" for problem in found)
    return int(bool(found))


def row(sight: Sight) -> str:
    """Return what was seen as a line."""
    return f"{sight.requests:>10} requests{sight.rss_mb:>12.1f} MB{sight.cpu_us:>8.0f} µs each{sight.per_s:>8.0f}/s\n"


if __name__ == "__main__":
    sys.exit(main())
