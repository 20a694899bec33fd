# ruff: noqa: INP001 - a script of its own
"""What the dashboard costs: CPU of rolecall per request with 0 and with 5 watchers of `/v1/events`, and its own parts.

    python benchmarks/dashboard_cost.py [--requests 5000] [--clients 32] [--watchers 5] [--rounds 20] [--stream]
    python benchmarks/dashboard_cost.py --browsers /ui [--wait-ms 20]

An upstream in C answers at once, a client in C sends over 32 connections as fast as answers come; rounds without and
with watchers take turns, and the CPU time of rolecall's process is counted over each, by the kernel's scheduler. What
else runs on the machine only ever makes a round dearer, so the cheapest quarter of each is compared. The watchers are
plain HTTP clients that read all they are sent; with `--browsers` they are so many Chromiums that show a page, which
need cores of their own: `--wait-ms` has the upstream begin its streams so much later, for fewer requests a second.

Without browsers also, within one process: what a line of the log and an event of the scheduler cost the one who tells
them, 10,000 of each a second, and what a round costs with 20 models.

Exit code 1 if the watchers cost 3 % or more. Needs a C compiler, with `--browsers` Chromium and its driver.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import json
import selectors
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

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

if TYPE_CHECKING:
    from browser.page import Page

MOST = 0.03
SETTLE_S = 0.5
"""After that the snapshot has been sent, which is no part of what is measured."""

LONGER = 2
"""Rounds in the recording: with browsers one takes longer than without."""

COUNT_DRAWN = """
window.drawn = 0;
new MutationObserver(() => { window.drawn += 1; }).observe(document.getElementById("view"), {
  childList: true, subtree: true, characterData: true,
});
"""
EVENTS_PER_S = 10_000


class Watchers:
    """Reads the events of so many connections in a thread."""

    def __init__(self, port: int, count: int) -> None:
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
                key.fileobj.recv(1 << 20)  # type: ignore[union-attr]

    def close(self) -> None:
        self._is_over = True
        self._thread.join()
        for each in self._sockets:
            each.close()


@contextmanager
def watching(port: int, count: int) -> Iterator[None]:
    """Watch for as long as the block lasts."""
    watchers = Watchers(port, count)
    try:
        time.sleep(SETTLE_S)
        yield
    finally:
        watchers.close()


@contextmanager
def looking(tabs: Sequence[Page], address: str, *, must_follow: bool = True) -> Iterator[None]:
    """Have a page open in browsers for as long as the block lasts; raises ``RuntimeError`` if one does not follow."""
    for tab in tabs:
        tab.open(address)
    for tab in tabs:
        tab.until("#link", "live")
    time.sleep(SETTLE_S)
    try:
        for tab in tabs:
            tab.run(COUNT_DRAWN)
        yield
        if must_follow and not all(tab.run("return window.drawn") for tab in tabs):
            raise RuntimeError(f"{address} does not show what ended meanwhile")
    finally:
        for tab in tabs:
            tab.leave()


def browsers(stack: ExitStack, count: int) -> list[Page]:
    """Start so many Chromiums."""
    from browser.conftest import chromium_driver  # noqa: PLC0415 - selenium, which all else here does without
    from browser.page import Page  # noqa: PLC0415

    return [Page(stack.enter_context(chromium_driver())) for _ in range(count)]


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
    wanted = {"stream": asked.stream} | ({"stream": True, "stop": f"wait:{asked.wait_ms}"} if asked.wait_ms else {})
    body.write_text(json.dumps({"model": "bench", "messages": [message], **wanted}))
    with Mock(programs) as mock:
        entries = [upstream_entry("bench", f"http://127.0.0.1:{mock.port}/v1")]
        entries += [fake_entry(f"other-{number}", role_priority={"chat": number}) for number in range(19)]
        with Rolecall(folder / "server", entries) as server:
            cpu_us(server, programs, body, asked)  # warm
            measure = functools.partial(cpu_us, server, programs, body, asked)
            rounds = with_browsers(server, measure, asked) if asked.browsers else with_clients(server, measure, asked)
    without, with_them = rounds["0"], rounds[f"{asked.watchers}"]
    told = {f"CPU us per request, {name} watchers": round(cheapest(each), 2) for name, each in rounds.items()}
    medians = {name: round(statistics.median(each), 2) for name, each in rounds.items()}
    return {**told, "more": round(cheapest(with_them) / cheapest(without) - 1, 4), "medians": medians}


def with_clients(server: Rolecall, measure: Callable[[], float], asked: argparse.Namespace) -> dict[str, list[float]]:
    """Return what requests cost without and with watchers, in turn."""
    without, with_them = [], []
    for _ in range(asked.rounds):
        without.append(measure())
        with watching(server.port, asked.watchers):
            with_them.append(measure())
    return {"0": without, f"{asked.watchers}": with_them}


def with_browsers(server: Rolecall, measure: Callable[[], float], asked: argparse.Namespace) -> dict[str, list[float]]:
    """Return what requests cost without browsers, with some that look at a recording, and with some that watch."""
    from browser.playback import Playback, recording  # noqa: PLC0415
    from browser.told import serving  # noqa: PLC0415

    address = f"http://127.0.0.1:{server.port}"
    with recording(address) as recorded:
        for _ in range(LONGER):
            measure()
    playback = Playback(recorded)
    idle, elsewhere, with_them = [], [], []
    with ExitStack() as stack:
        tabs = browsers(stack, asked.watchers)
        replayed = stack.enter_context(serving(playback.app()))
        for _ in range(asked.rounds):
            idle.append(measure())
            # A recording has no log to be read from.
            with looking(tabs, replayed + asked.browsers, must_follow=asked.browsers == "/ui"):
                playback.play()
                elsewhere.append(measure())
            playback.stop()
            with looking(tabs, address + asked.browsers):
                with_them.append(measure())
    return {"0 (browsers idle)": idle, "0": elsewhere, f"{asked.watchers}": with_them}


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
    parser.add_argument("--wait-ms", type=int, default=0)
    parser.add_argument("--browsers", metavar="PAGE")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = compare(Path(folder), asked)
        if not asked.browsers:
            found |= asyncio.run(parts(Path(folder)))
    if asked.json:
        sys.stdout.write(f"{json.dumps(found, indent=2)}\n")
    else:
        for name, value in found.items():
            sys.stdout.write(f"{name:65} {value}\n")
    return int(found["more"] >= MOST)


if __name__ == "__main__":
    raise SystemExit(main())
