"""A rolecall whose model takes long to load, and all clients waiting for them at the same time.

They wait while the other tests run, which takes about as long.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from clients.adapters import EVERY
from clients.entries import HELLO, demo_entry
from harness import Rolecall

LOAD_S = 100
"""Longer than llama-index's time limit of 60 s, and than what most proxies allow for a silent connection."""

SLEEPER = 'sleep "$1"; shift; exec "$0" -m rolecall.backends.embedded --threads 1 "$@"'
"""Becomes the real engine, later."""


def slow_entry() -> dict[str, Any]:
    """Return an entry that runs the demo chat model on the real engine, which begins to load it so much later."""
    entry = demo_entry("slow", load_timeout_s=3 * LOAD_S)
    flags = ["--model", "{model}", "--port", "{port}", "--alias", "{alias}"]
    entry["backend_config"]["command"] = ["sh", "-c", SLEEPER, "{python}", str(LOAD_S), *flags]
    return entry


@dataclass(frozen=True)
class Waited:
    """What a client got, and after how many seconds."""

    text: str
    after_s: float


class SlowLoads:
    """The clients' answers as they will come, by the client's name and the way it was asked."""

    def __init__(self, server: Rolecall, pool: ThreadPoolExecutor) -> None:
        self.server = server
        self._pool = pool
        self._answers: dict[tuple[str, str], Future[Waited]] = {}
        url = f"{server.base_url}/v1"
        for client in _clients():
            made = client(url)
            self._ask(client.name, "whole", partial(made.whole, "slow"))
            self._ask(client.name, "stream", partial(_stream, made))
            if hasattr(made, "pieces"):
                self._ask(client.name, "task", partial(asyncio.run, _in_task(made)))
        for way, call in _of_anthropic(server.base_url).items():
            self._ask("anthropic", way, call)

    def _ask(self, name: str, way: str, call: Callable[[], str]) -> None:
        started = time.monotonic()
        self._answers[name, way] = self._pool.submit(lambda: Waited(call(), time.monotonic() - started))

    def of(self, name: str, way: str) -> Waited:
        """Return what a client got; raises what it raised."""
        return self._answers[name, way].result(2 * LOAD_S)


def _clients() -> Iterator[Any]:
    """The clients that are there: parameters with a reason to be skipped are left to the tests."""
    return (each.values[0] for each in EVERY if not any(mark.args[0] for mark in each.marks))


def _stream(client: Any) -> str:
    return "".join(client.stream("slow"))


async def _in_task(client: Any) -> str:
    return "".join([piece async for piece in client.pieces("slow")])


def _of_anthropic(base_url: str) -> dict[str, Callable[[], str]]:
    import anthropic

    arguments: dict[str, Any] = {"model": "slow", "max_tokens": 100, "messages": HELLO}

    def whole() -> str:
        with anthropic.Anthropic(base_url=base_url, api_key="none") as client:
            return str(client.messages.create(**arguments).content[0].text)

    def stream() -> str:
        with (
            anthropic.Anthropic(base_url=base_url, api_key="none") as client,
            client.messages.stream(**arguments) as events,
        ):
            return str(events.get_final_text())

    return {"whole": whole, "stream": stream}


@contextmanager
def slow_loads(folder: Path) -> Iterator[SlowLoads]:
    """Let all clients wait for a model of which nobody has asked before."""
    settings = {"llama_server": "embedded", "shutdown_grace_s": 0.5}
    with ThreadPoolExecutor(32) as pool, Rolecall(folder, [slow_entry()], settings=settings) as server:
        yield SlowLoads(server, pool)
