"""Many requests, streamed and not, of clients that leave at any moment: afterwards everything is as it was before."""

from __future__ import annotations

import contextlib
import json
import random
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from harness import CHAT, Rolecall, eventually, fake_entry, prompt

PROBE = Path(__file__).parent / "loop_probe"
MODELS = ("m0", "m1")
POOLED = {"threads": 40}
"""What may be kept for a while: threads of the pools, which end at forty."""
LOST_MEMORY_MB = 30
"""What may be kept for the next requests, by the allocator and in pools. 1 KB that leaks with each of 50,000 requests
is 50 MB."""


@dataclass(frozen=True)
class Plan:
    """How much is asked of a rolecall; ``leave`` is the share of clients that go before they have their answer."""

    requests: int = 600
    clients: int = 32
    leave: float = 0.3
    warm_up: int = 300
    seed: int = 1


@dataclass(frozen=True)
class State:
    """What a rolecall holds when it has nothing to do."""

    memory_mb: float
    open_files: int
    threads: int
    tasks: int
    processes: int
    leases: int
    waiting: int
    reserved_mb: float
    engine_requests: int
    """That the engines believe to be in flight."""


@dataclass
class Report:
    """What came of it."""

    before: State
    after: State
    peak_mb: float
    held_ms: float
    lines: int
    wall_s: float
    endings: Counter[str] = field(default_factory=Counter)

    def problems(self, plan: Plan) -> list[str]:
        """Return in words what is not as it has to be."""
        before, after = asdict(self.before), asdict(self.after)
        found = [
            f"{name}: {before[name]} before, {after[name]} after"
            for name in before
            if name != "memory_mb" and after[name] > before[name] + POOLED.get(name, 0)
        ]
        if self.after.memory_mb - self.before.memory_mb > LOST_MEMORY_MB:
            found.append(f"memory: {self.before.memory_mb:.0f} MB before, {self.after.memory_mb:.0f} MB after")
        if self.lines != plan.requests:
            found.append(f"{self.lines} lines in the log for {plan.requests} requests")
        strange = {ending for ending in self.endings if not ending.startswith(("whole", "left"))}
        return [*found, *(f"{self.endings[ending]} times {ending}" for ending in sorted(strange))]


class Client:
    """One client, on one connection after the other."""

    def __init__(self, port: int, seed: int, leave: float) -> None:
        self._port, self._leave = port, leave
        self._draw = random.Random(seed)
        self._connection: socket.socket | None = None

    def ask(self) -> str:
        """Send one request; return how that ended."""
        draw = self._draw
        streamed = draw.random() < 0.5
        fake = {"tokens": draw.randrange(1, 30), "token_delay_s": draw.choice([0, 0, 0.001])}
        text = "x" * draw.choice([1, 100, 10_000, 200_000])
        body = json.dumps(prompt(draw.choice(MODELS), text, stream=streamed, fake=fake)).encode()
        kind = f"Content-Type: application/json\r\nContent-Length: {len(body)}"
        head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\n{kind}\r\n\r\n".encode()
        request = head + body
        leaves_at = draw.choice(["body", "sent", "head", "answer"]) if draw.random() < self._leave else None
        try:
            return self._converse(request, len(head), leaves_at, streamed=streamed)
        except (OSError, ValueError) as error:
            self.close()
            return f"broken: {type(error).__name__}"

    def _converse(self, request: bytes, head_bytes: int, leaves_at: str | None, *, streamed: bool) -> str:
        connection = self._connected()
        if leaves_at == "body":
            connection.sendall(request[: self._draw.randrange(head_bytes, len(request))])
            return self._gone(leaves_at)
        connection.sendall(request)
        if leaves_at == "sent":
            return self._gone(leaves_at)
        data = connection.recv(self._draw.randrange(1, 500) if leaves_at else 65536)
        if leaves_at == "answer":
            data += connection.recv(self._draw.randrange(1, 2000))
        if leaves_at:
            return self._gone(leaves_at)
        while not is_whole(data):
            more = connection.recv(65536)
            if not more:
                raise ConnectionResetError
            data += more
        if self._draw.random() < 0.2:
            self.close()
        status = data[9:12].decode()
        is_right = status == "200" and (b"[DONE]" in data) == streamed
        return f"whole, {'streamed' if streamed else 'at once'}" if is_right else f"wrong: {status}"

    def _connected(self) -> socket.socket:
        if self._connection is None:
            self._connection = socket.create_connection(("127.0.0.1", self._port), timeout=30)
            self._connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return self._connection

    def _gone(self, at: str) -> str:
        if self._connection is not None and self._draw.random() < 0.5:  # a reset instead of a farewell
            self._connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()
        return f"left: {at}"

    def close(self) -> None:
        """Leave."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def is_whole(data: bytes) -> bool:
    """Whether the one answer in ``data`` is complete."""
    head, _, body = data.partition(b"\r\n\r\n")
    fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
    if b"content-length" in fields:
        return len(body) >= int(fields[b"content-length"])
    return body.endswith(b"0\r\n\r\n")


def soak(folder: Path, plan: Plan) -> Report:
    """Run the plan and return what came of it."""
    probe = folder / "held"
    environ = {"PYTHONPATH": str(PROBE), "ROLECALL_LOOP_PROBE": str(probe)}
    entries = [fake_entry(name, "--parallel", "8", max_parallel=8) for name in MODELS]
    with Rolecall(folder, entries, environ=environ, settings={"log_backups": 50}) as server:
        server.http.close()
        for name in MODELS:
            load(server, name)
        ask_all(server, Plan(plan.warm_up, plan.clients, plan.leave, seed=plan.seed + 1000))
        before = settled(server, probe, plan.warm_up)
        probe.unlink(missing_ok=True)
        peak = Peak(server.process.pid)
        start = time.monotonic()
        endings = ask_all(server, plan)
        wall_s = time.monotonic() - start
        held_ms = float(probe.read_text()) if probe.exists() else 0.0
        after = settled(server, probe, plan.warm_up + plan.requests)
        lines = lines_of(server) - plan.warm_up
        return Report(before, after, peak.stop(), held_ms, lines, wall_s, endings)


def load(server: Rolecall, name: str) -> None:
    """Load a model."""
    assert server.exchange(f"POST /v1/models/{name}/load HTTP/1.0\r\nContent-Length: 0\r\n\r\n".encode())[0] == 200


def ask_all(server: Rolecall, plan: Plan) -> Counter[str]:
    """Let all clients ask what the plan says, and leave."""
    shares = [plan.requests // plan.clients + (n < plan.requests % plan.clients) for n in range(plan.clients)]

    def live(number: int) -> Counter[str]:
        client = Client(server.port, plan.seed * 1000 + number, plan.leave)
        with contextlib.closing(client):
            return Counter(client.ask() for _ in range(shares[number]))

    with ThreadPoolExecutor(plan.clients) as pool:
        return sum(pool.map(live, range(plan.clients)), Counter())


class Peak(threading.Thread):
    """Watches the memory of a process."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self._process, self._over, self._peak = psutil.Process(pid), threading.Event(), 0
        self.start()

    def run(self) -> None:
        """Look ten times a second."""
        while not self._over.wait(0.1):
            self._peak = max(self._peak, self._process.memory_info().rss)

    def stop(self) -> float:
        """Return the most that it held, in MB."""
        self._over.set()
        self.join()
        return self._peak / 2**20


def settled(server: Rolecall, probe: Path, lines: int) -> State:
    """Return what is held once every request has its line and nothing has changed for a second."""
    eventually(lambda: lines_of(server) >= lines)
    states: list[State] = []

    def is_still() -> State | None:
        states.append(state_of(server, probe))
        time.sleep(0.6)  # the number of tasks is written twice a second
        return states[-1] if states[-1:] == states[-2:-1] else None

    with contextlib.suppress(AssertionError):
        return eventually(is_still)
    return states[-1]


def state_of(server: Rolecall, probe: Path) -> State:
    """Return what is held now, as seen over a connection that is closed again."""
    rows = ask(server, "/v1/models/health")["data"]
    health = ask(server, "/health")
    process = psutil.Process(server.process.pid)
    engines = [server_stats(row["port"]) for row in rows]
    tasks = probe.with_name(probe.name + ".tasks")
    return State(
        memory_mb=round(process.memory_info().rss / 2**20),
        open_files=least(process.num_fds),
        threads=least(process.num_threads),
        tasks=int(tasks.read_text() or 0) if tasks.exists() else 0,
        processes=len(process.children(recursive=True)),
        leases=sum(row["in_flight"] for row in rows),
        waiting=health["queue"],
        reserved_mb=health["reserved_mb"],
        engine_requests=sum(stats["in_flight"] for stats in engines),
    )


def least(question: Callable[[], int]) -> int:
    """Return the smallest of ten answers within half a second: health checks open files for a moment."""
    answers = []
    for _ in range(10):
        answers.append(question())
        time.sleep(0.05)
    return min(answers)


def ask(server: Rolecall, path: str) -> Any:
    """Return the JSON of a GET on a connection of its own."""
    status, _, body = server.exchange(f"GET {path} HTTP/1.0\r\n\r\n".encode())
    assert status == 200
    return json.loads(body)


def server_stats(port: int) -> dict[str, Any]:
    """Return what a fake engine has seen."""
    seen: dict[str, Any] = httpx.get(f"http://127.0.0.1:{port}/stats", trust_env=False, timeout=30).json()
    return seen


def lines_of(server: Rolecall) -> int:
    """Return how many lines the request log has, rotated files included."""
    return sum(file.read_bytes().count(b"\n") for file in server.folder.glob(server.log_path.name + "*"))


@pytest.mark.alone
def test_afterwards_everything_is_as_before(tmp_path: Path) -> None:
    """Six hundred requests, a third of whose clients leave early, take nothing with them, and each has its line."""
    plan = Plan()
    report = soak(tmp_path, plan)
    assert report.problems(plan) == []
    assert sum(report.endings.values()) == plan.requests
    assert report.endings["left: answer"] > 10
