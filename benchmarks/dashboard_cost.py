# ruff: noqa: INP001 - a script of its own
"""What the dashboard costs: CPU of rolecall per request with 0 and with 5 watchers of `/v1/events`, and its own parts.

    python benchmarks/dashboard_cost.py [--requests 5000] [--clients 32] [--watchers 5] [--rounds 20] [--stream]

An upstream in C answers at once, a client in C sends over 32 connections as fast as answers come; rounds without and
with watchers take turns, and the CPU time of rolecall's process is counted over each, by the kernel's scheduler. What
else runs on the machine only ever makes a round dearer, so the cheapest quarter of each is compared. The watchers are
plain HTTP clients that read all they are sent. Then, within one process: what a line of the log and an event of the
scheduler cost the one who tells them, 10,000 of each a second, and what a round costs with 20 models.

Exit code 1 if the watchers cost 3 % or more. Needs a C compiler.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import selectors
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from bench.programs import Mock, Programs, build
from harness import Rolecall, fake_entry, upstream_entry
from rolecall.core.events import Arrived
from rolecall.core.selection import Demand
from rolecall.gateway.recorder import RequestLine
from rolecall.gateway.server import running_gateway
from rolecall.insight.feed import Feed
from rolecall.runtime.roster import load_roster
from rolecall.settings import load_settings

MOST = 0.03
EVENTS_PER_S = 10_000


class Watchers:
    """Reads the events of so many connections in a thread, and counts their bytes."""

    def __init__(self, port: int, count: int) -> None:
        self.bytes = 0
        self._selector = selectors.DefaultSelector()
        self._sockets = [socket.create_connection(("127.0.0.1", port)) for _ in range(count)]
        for each in self._sockets:
            each.sendall(b"GET /v1/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
            self._selector.register(each, selectors.EVENT_READ)
        self._is_over = False
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        while not self._is_over:
            for key, _ in self._selector.select(0.1):
                self.bytes += len(key.fileobj.recv(1 << 20))  # type: ignore[union-attr]

    def close(self) -> None:
        self._is_over = True
        self._thread.join()
        for each in self._sockets:
            each.close()


@contextmanager
def watching(port: int, count: int) -> Iterator[Watchers]:
    """Watch for as long as the block lasts."""
    watchers = Watchers(port, count)
    try:
        time.sleep(0.3)  # the snapshot is no part of what is measured
        yield watchers
    finally:
        watchers.close()


def cpu_us(server: Rolecall, programs: Programs, body: Path, asked: argparse.Namespace) -> float:
    """Return the CPU time of a request, in µs of all threads of rolecall's process."""
    command = [programs.load, str(server.port), "/v1/chat/completions", "-b", body, "-c", str(asked.clients)]
    before = cpu_ns(server.process.pid)
    done = subprocess.run([*command, "-n", str(asked.requests)], capture_output=True, text=True, check=True)
    after = cpu_ns(server.process.pid)
    if json.loads(done.stdout)["bad_status"]:
        raise RuntimeError(f"not all answers are good: {done.stdout}")
    return (after - before) / 1000 / asked.requests


def cpu_ns(pid: int) -> int:
    """Return the CPU time of a process so far, as the scheduler counts it (proc_pid_schedstat)."""
    return sum(int(each.read_text().split()[0]) for each in Path(f"/proc/{pid}/task").glob("*/schedstat"))


def cheapest(rounds: list[float]) -> float:
    """Return the mean of the cheapest quarter."""
    return statistics.mean(sorted(rounds)[: max(1, len(rounds) // 4)])


def compare(folder: Path, asked: argparse.Namespace) -> dict[str, Any]:
    """Measure both in turn."""
    programs = build(folder)
    body = folder / "body.json"
    message = {"role": "user", "content": "Name three colours."}
    body.write_text(json.dumps({"model": "bench", "messages": [message], "stream": asked.stream}))
    with Mock(programs) as mock:
        entries = [upstream_entry("bench", f"http://127.0.0.1:{mock.port}/v1")]
        entries += [fake_entry(f"other-{number}", role_priority={"chat": number}) for number in range(19)]
        with Rolecall(folder / "server", entries) as server:
            cpu_us(server, programs, body, asked)  # warm
            without, with_them, told = [], [], 0
            for _ in range(asked.rounds):
                without.append(cpu_us(server, programs, body, asked))
                with watching(server.port, asked.watchers) as watchers:
                    with_them.append(cpu_us(server, programs, body, asked))
                    told += watchers.bytes
    return {
        "CPU us per request, 0 watchers": round(cheapest(without), 2),
        f"CPU us per request, {asked.watchers} watchers": round(cheapest(with_them), 2),
        "more": round(cheapest(with_them) / cheapest(without) - 1, 4),
        "medians": [round(statistics.median(each), 2) for each in (without, with_them)],
        "MB read by the watchers": round(told / 1e6, 1),
    }


def each_us(what: Any, count: int) -> float:
    """Return what one call costs."""
    began = time.perf_counter()
    for _ in range(count):
        what()
    return (time.perf_counter() - began) * 1e6 / count


async def parts(folder: Path) -> dict[str, Any]:
    """Measure what the listeners and a round cost, within this process."""
    server = Rolecall(folder / "parts", [fake_entry(f"m{number}") for number in range(20)])
    settings = load_settings({"config_dir": server.config_dir, "state_dir": server.state, "log_path": server.log_path})
    found: dict[str, Any] = {}
    async with running_gateway(load_roster(settings)) as gateway:
        feed = Feed(gateway)
        hear_line, hear_event = gateway.services.recorder.listeners[-1], gateway.services.supervisor.listeners[-1]
        line = RequestLine(request_id="req_1", model="m1", status=200).as_dict()
        event = Arrived(1, Demand(), ("m1",))
        found |= await _flood("told to nobody", lambda: None)
        for name, count in (("unwatched", 0), ("watched", 5)):
            watchers = [feed.admit(lambda: True) for _ in range(count)]
            reading = [asyncio.create_task(_read(feed, watcher)) for watcher in watchers]
            found[f"us per line, {name}"] = round(each_us(lambda: hear_line(line), 100_000), 3)
            found[f"us per event, {name}"] = round(each_us(lambda: hear_event(event, []), 100_000), 3)
            found |= await _flood(name, lambda: (hear_line(line), hear_event(event, [])))
            found |= {"ms per round": round(each_us(feed.look, 200) / 1000, 3)} if count else {}
            for watcher, task in zip(watchers, reading, strict=True):
                watcher.end()
                await task
                feed.dismiss(watcher)
        feed.stop()
        await feed.aclose()
    return found


async def _read(feed: Feed, watcher: Any) -> None:
    async for _ in feed.events(watcher):
        pass


async def _flood(name: str, tell: Callable[[], object]) -> dict[str, Any]:
    """Tell of 10,000 lines and events a second for two seconds; return how late a timer of 1 ms was meanwhile."""
    late: list[float] = []
    end = time.perf_counter() + 2
    while time.perf_counter() < end:
        began = time.perf_counter()
        for _ in range(EVENTS_PER_S // 1000):
            tell()
        await asyncio.sleep(0.001)
        late.append((time.perf_counter() - began - 0.001) * 1000)
    late.sort()
    return {
        f"10,000 a second, {name}: a timer is late by ms, median": round(statistics.median(late), 3),
        f"10,000 a second, {name}: 99 %": round(late[int(len(late) * 0.99)], 3),
    }


def main() -> int:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=5000)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--watchers", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--stream", action="store_true")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = compare(Path(folder), asked) | asyncio.run(parts(Path(folder)))
    if asked.json:
        sys.stdout.write(f"{json.dumps(found, indent=2)}\n")
    else:
        for name, value in found.items():
            sys.stdout.write(f"{name:65} {value}\n")
    return int(found["more"] >= MOST)


if __name__ == "__main__":
    raise SystemExit(main())
