"""Thousands of made-up requests against a running rolecall: no 500, no hang, no growth, and a loop that always runs.

``make test`` makes up a thousand bodies and a thousand connections, the same ones each time; ``make fuzz`` ten thousand
of each, new ones each time (``ROLECALL_FUZZ``).
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness import CHAT, Rolecall, fake_entry, prompt
from process.fuzz_requests import BODIES, ENDPOINTS, MODEL, SOCKETS

COUNT = int(os.environ.get("ROLECALL_FUZZ", "1000"))
AT_ONCE = 20
HANG_S = 1.0
HELD_MS = 50.0
GROWTH_MB = 40
"""Memory that may be added, for caches and pools; 5 KB that leak with each request are 50 MB after ten thousand."""
MB = 2**20
PROBE = Path(__file__).parent / "loop_probe"
LIMITS_MS = 200

pytestmark = pytest.mark.alone

fuzz = settings(
    max_examples=COUNT // AT_ONCE,
    deadline=None,
    derandomize="ROLECALL_FUZZ" not in os.environ,
    database=None,
    suppress_health_check=list(HealthCheck),
)


@dataclass
class Watched:
    """A rolecall with a probe in its loop, and the slowest exchange so far."""

    rolecall: Rolecall
    probe: Path
    slowest_s: float = 0.0
    statuses: dict[int, int] = field(default_factory=dict)

    def held_ms(self) -> float:
        """The longest time for which the loop was held up."""
        return float(self.probe.read_text() or 0) if self.probe.exists() else 0.0

    def memory_mb(self) -> float:
        """What the process holds."""
        return psutil.Process(self.rolecall.process.pid).memory_info().rss / 2**20

    def note(self, status: int, seconds: float) -> None:
        """Take in an answer."""
        self.statuses[status] = self.statuses.get(status, 0) + 1
        self.slowest_s = max(self.slowest_s, seconds)
        assert status != 500


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """Run one rolecall with limits of 0.2 s, whose loop is watched."""
    limits = {"header_timeout_ms": LIMITS_MS, "body_timeout_ms": LIMITS_MS}
    with watching(tmp_path_factory.mktemp("fuzz"), limits) as running:
        yield running


@pytest.fixture(scope="module")
def patient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """Run one rolecall as it is, whose loop is watched."""
    with watching(tmp_path_factory.mktemp("large"), {}) as running:
        yield running


@contextlib.contextmanager
def watching(folder: Path, limits: Mapping[str, int]) -> Iterator[Watched]:
    """Run a rolecall with a loaded model."""
    probe = folder / "held"
    environ = {"PYTHONPATH": str(PROBE), "ROLECALL_LOOP_PROBE": str(probe)}
    entry = fake_entry(MODEL, roles=["chat"])
    with Rolecall(folder, [entry], settings=limits, environ=environ) as server:
        assert server.chat(MODEL).status_code == 200
        yield Watched(server, probe)
        assert server.get("/health")["status"] == "ok"
        assert "Traceback" not in server.words()


@contextlib.contextmanager
def unharmed(watched: Watched) -> Iterator[None]:
    """See that what is within leaves no more behind than it may, and never holds the loop up."""
    watched.probe.unlink(missing_ok=True)
    before_mb = watched.memory_mb()
    yield
    report = f"{watched.statuses}, slowest {watched.slowest_s:.2f} s, loop held {watched.held_ms():.1f} ms"
    sys.stdout.write(f"{report}, memory {before_mb:.0f} -> {watched.memory_mb():.0f} MB\n")  # seen with -s
    assert watched.held_ms() < HELD_MS, report
    assert watched.memory_mb() - before_mb < GROWTH_MB
    watched.rolecall.await_in_flight(MODEL, 0)
    assert watched.rolecall.chat(MODEL).status_code == 200


def post(watched: Watched, path: str, body: bytes) -> None:
    """Send a body and read the whole answer; one that takes too long twice hangs."""
    for attempt in (1, 2):
        start = time.monotonic()
        connection = http.client.HTTPConnection("127.0.0.1", watched.rolecall.port, timeout=10)
        connection.request("POST", path, body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        with contextlib.suppress(http.client.IncompleteRead):  # a stream that was broken off
            answer.read()
        connection.close()
        seconds = time.monotonic() - start
        if seconds < HANG_S or attempt == 2:
            break
    watched.note(answer.status, seconds)
    assert seconds < HANG_S


def converse(watched: Watched, data: bytes) -> None:
    """Send bytes and read until the server closes or its answer is there; it has to do one of these in time."""
    for attempt in (1, 2):
        start = time.monotonic()
        given = exchange(watched, data)
        seconds = time.monotonic() - start
        if seconds < HANG_S or attempt == 2:
            break
    watched.note(int(given[9:12]) if given.startswith(b"HTTP/1.1 ") else 0, seconds)
    assert given[:9] in {b"", b"HTTP/1.1 "}
    assert seconds < HANG_S


def exchange(watched: Watched, data: bytes) -> bytes:
    """Return what came until there was an answer and then nothing for a moment, or the connection ended."""
    given = b""
    with watched.rolecall.raw() as connection, contextlib.suppress(OSError):
        connection.sendall(data)
        while True:
            connection.settimeout(0.05 if given else 10)
            more = connection.recv(65536)
            if not more:
                break
            given += more
    return given


def test_bodies(watched: Watched) -> None:
    """Whatever a body holds, it is answered at once, and what follows is served as ever."""
    with ThreadPoolExecutor(AT_ONCE) as pool, unharmed(watched):
        paths = st.sampled_from([CHAT, CHAT, CHAT, *ENDPOINTS])
        batches = st.lists(st.tuples(paths, BODIES), min_size=AT_ONCE, max_size=AT_ONCE)

        @fuzz
        @given(batches)
        def send(batch: list[tuple[str, bytes]]) -> None:
            list(pool.map(lambda it: post(watched, *it), batch))

        send()


def test_connections(watched: Watched) -> None:
    """Whatever comes over a connection, it has an answer or its end within the limits, and nothing is left of it."""
    with ThreadPoolExecutor(AT_ONCE) as pool, unharmed(watched):

        @fuzz
        @given(st.lists(SOCKETS, min_size=AT_ONCE, max_size=AT_ONCE))
        def send(batch: list[bytes]) -> None:
            list(pool.map(lambda data: converse(watched, data), batch))

        send()


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (json.dumps(prompt(MODEL, "A" * 16 * MB)).encode(), 200),
        (json.dumps(prompt(MODEL, "\n" * 20 * MB)).encode(), 413),
        (json.dumps({"model": MODEL, "messages": [{"role": "user", "content": "hi"}] * 100_000}).encode(), 400),
        (json.dumps(prompt(MODEL, x=[[]] * 50_000)).encode(), 200),
        (json.dumps(prompt(MODEL, x=list(range(900_000)))).encode(), 200),
        (b'{"a":' * 10_000 + b"1" + b"}" * 10_000, 400),
        (b"[" * 10 * MB, 400),
        (b"x" * 100 * MB, 413),
    ],
    ids=["text", "escapes", "messages", "lists", "numbers", "deep", "brackets", "above the limit"],
)
def test_large_bodies_do_not_hold_the_loop_up(patient: Watched, body: bytes, status: int) -> None:
    """Bodies at the limits are served, bodies above them refused, and others are served meanwhile."""
    patient.probe.unlink(missing_ok=True)
    answer = patient.rolecall.http.post(CHAT, content=body, headers={"content-type": "application/json"})
    assert (answer.status_code, patient.held_ms() < HELD_MS) == (status, True), f"{patient.held_ms()} ms"
