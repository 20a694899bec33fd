"""A client that leaves, by whatever way it has: the engine's work ends within a second, and the line says 499."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections.abc import Iterator
from typing import Any

import pytest

from clients.adapters import EVERY, PYTHON, AsyncClient, Client
from harness import Rolecall, eventually

ENGINES = ("thinks-long", "talks-long")


@contextlib.contextmanager
def left(server: Rolecall, model: str) -> Iterator[None]:
    """Check that the client which is at work within has left no trace a second after it left."""
    count = len(_lines(server, model))
    with _cancelled(server, model) if model in ENGINES else contextlib.nullcontext():
        yield
    eventually(lambda: server.get("/health")["queue"] == 0, within_s=1)
    eventually(lambda: len(_lines(server, model)) > count)
    (line,) = _lines(server, model)[count:]
    assert line["status"] == 499
    assert line["error"].startswith("client_gone")


def _lines(server: Rolecall, model: str) -> list[dict[str, Any]]:
    return [line for line in server.log_lines() if line["requested_model"] == model]


@contextlib.contextmanager
def _cancelled(server: Rolecall, model: str) -> Iterator[None]:
    """Check that the engine has lost its one request."""
    server.http.post(f"/v1/models/{model}/load")
    stats = f"http://127.0.0.1:{server.row(model)['port']}/stats"

    def aborted() -> int:
        count: int = server.http.get(stats).json()["aborted"]
        return count

    before = aborted()
    yield
    eventually(lambda: aborted() == before + 1, within_s=1)
    server.await_in_flight(model, 0)


@pytest.mark.parametrize("client", EVERY)
def test_who_stops_reading(base_url: str, server: Rolecall, client: type[Client]) -> None:
    """A loop that ends early closes the stream, or aborts it."""
    with left(server, "talks-long"):
        with contextlib.closing(client(base_url).stream("talks-long")) as pieces:  # type: ignore[type-var]
            assert "w2" in "".join(_until("w2", pieces))
        gc.collect()  # to which llama-index leaves the connection


def _until(word: str, pieces: Iterator[str]) -> Iterator[str]:
    for piece in pieces:
        yield piece
        if word in piece:
            break


@pytest.mark.parametrize("client", EVERY)
@pytest.mark.parametrize("model", ["never-ready", "thinks-long"], ids=["while it loads", "before the answer"])
def test_who_has_no_more_time(base_url: str, server: Rolecall, client: type[Client], model: str) -> None:
    """A time limit of the client's own, whatever it waited for."""
    with left(server, model), pytest.raises(Exception, match=r"(?i)timed out|^$"):
        client(base_url, limit_s=1).whole(model)


@pytest.mark.parametrize("client", PYTHON)
@pytest.mark.parametrize(
    "model", ["never-ready", *ENGINES], ids=["while it loads", "before the answer", "in the answer"]
)
async def test_a_task_that_is_cancelled(base_url: str, server: Rolecall, client: type[AsyncClient], model: str) -> None:
    """The task that reads a stream is cancelled, whatever it waits for."""
    begun = asyncio.Event()

    async def read() -> None:
        async for piece in client(base_url).pieces(model):
            if piece:
                begun.set()

    with left(server, model):
        reading = asyncio.create_task(read())
        await _begin(server, model, begun)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading


async def _begin(server: Rolecall, model: str, begun: asyncio.Event) -> None:
    """Wait until a request has come as far as it does with this model."""
    wait: dict[str, Any] = {
        "never-ready": lambda: asyncio.to_thread(server.await_waiting, 1),
        "thinks-long": lambda: asyncio.to_thread(eventually, lambda: server.stats(model)["in_flight"] == 1),
        "talks-long": begun.wait,
    }
    await wait[model]()
