"""A server that runs, and those of them that questions are sent to."""

from __future__ import annotations

import contextlib
import http.client
import os
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from bench.processes import Tree, on_cores
from bench.scenarios import NS1
from bench.servers import Place, Server
from unused_ports import unused_port

PATH = "/v1/chat/completions"
MODEL = "bench"

_LOOKS_EVERY_S = 0.002
_QUIET_S = 1.0


class NotReady(Exception):
    """A server did not answer in time; the end of what it has said is in the message."""


@dataclass(frozen=True)
class Target:
    """Whom a load is sent to. Without ``tree`` it is the upstream itself."""

    name: str
    port: int
    model: str = MODEL
    headers: dict[str, str] = field(default_factory=dict)
    tree: Tree | None = None
    is_slow: bool = False
    is_aside: bool = False

    def cpu_s(self) -> float:
        """Return the CPU time that it has taken."""
        return 0.0 if self.tree is None else self.tree.cpu_s()

    def rss_mb(self) -> float:
        """Return its memory."""
        return 0.0 if self.tree is None else self.tree.rss_mb()


@dataclass(frozen=True)
class Running:
    """A server that has answered its first request ``started_s`` after its start."""

    server: Server
    port: int
    tree: Tree
    started_s: float
    idle_mb: float

    def target(self, name: str | None = None, model: str = MODEL) -> Target:
        """Return it as one who is asked for ``model``; under another name it is one aside."""
        server = self.server
        target = Target(name or server.name, self.port, model, dict(server.headers), self.tree, server.is_slow)
        return replace(target, is_aside=server.is_aside or name is not None)


@contextlib.contextmanager
def running(
    server: Server, folder: Path, upstream: int, *, cores: set[int] | None = None, quiet_s: float = _QUIET_S
) -> Iterator[Running]:
    """Run a server for a while, on ``cores`` alone; its idle memory is measured ``quiet_s`` after its first answer.

    Raises ``NotReady``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    place = Place(folder, unused_port(), upstream)
    server.lay_out(place)
    environ = {**os.environ, "PORT": str(place.port), **server.environ}
    with (folder / "terminal.txt").open("wb") as terminal, on_cores(cores):
        began = time.perf_counter()
        process = subprocess.Popen(
            server.argv(place),
            env=environ,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=terminal,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    tree = Tree(process.pid)
    try:
        _wait_for_answer(process, server, place)
        started_s = time.perf_counter() - began
        time.sleep(quiet_s)
        yield Running(server, place.port, tree, started_s, tree.rss_mb())
    finally:
        tree.end()
        process.wait()


def _wait_for_answer(process: subprocess.Popen[bytes], server: Server, place: Place) -> None:
    until = time.perf_counter() + server.ready_s
    body = NS1.body(MODEL)
    headers = {"content-type": "application/json", **server.headers}
    said = "it does not listen"
    while time.perf_counter() < until and process.poll() is None:
        try:
            connection = http.client.HTTPConnection("127.0.0.1", place.port, timeout=20)
            connection.request("POST", PATH, body, headers)
            answer = connection.getresponse()
            said = f"{answer.status} {answer.read()[:300]!r}"
            connection.close()
        except OSError:
            time.sleep(_LOOKS_EVERY_S)
            continue
        if answer.status == 200:
            return
        time.sleep(0.05)
    terminal = (place.folder / "terminal.txt").read_text(errors="replace")[-1500:]
    raise NotReady(f"{server.name} is not ready: {said}\n{terminal}")
