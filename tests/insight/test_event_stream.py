"""A stream of events ends with its client, whatever that does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from starlette.types import Message

from rolecall.insight.event_stream import EventStream


async def serve(stream: EventStream, *, takes: int, leaves: asyncio.Event | None = None) -> list[Message]:
    """Serve a client that takes so many messages, and may leave; return what it took."""
    taken: list[Message] = []

    async def send(message: Message) -> None:
        if len(taken) == takes:
            await asyncio.Event().wait()
        taken.append(message)

    async def receive() -> Message:
        await (leaves or asyncio.Event()).wait()
        return {"type": "http.disconnect"}

    await asyncio.wait_for(stream({"type": "http", "path": "/v1/events"}, receive, send), timeout=10)
    return taken


async def endless(over: asyncio.Event) -> AsyncIterator[bytes]:
    """Yield parts until it is over."""
    while not over.is_set():
        yield b": x\n\n"
        await asyncio.sleep(0)


async def test_a_client_that_takes_nothing_is_given_up_on() -> None:
    """After a while, without a proper end: it must not think that it has had everything."""
    closed: list[bool] = []
    stream = EventStream(endless(asyncio.Event()), lambda: None, lambda: closed.append(True), patience_s=0.05)
    taken = await serve(stream, takes=4)
    assert all(message.get("more_body", True) for message in taken)
    assert closed == [True]


async def test_a_client_that_leaves_ends_the_stream() -> None:
    """The parts are told to end, and what was held for it is given back."""
    over, leaves, closed = asyncio.Event(), asyncio.Event(), list[bool]()
    stream = EventStream(endless(over), over.set, lambda: closed.append(True))
    asyncio.get_running_loop().call_later(0.01, leaves.set)
    await serve(stream, takes=10**9, leaves=leaves)
    assert closed == [True]


async def test_parts_that_end_are_a_proper_end() -> None:
    """As when the server ends, or a key is revoked."""

    async def two() -> AsyncIterator[bytes]:
        yield b"1"
        yield b"2"

    taken = await serve(EventStream(two(), lambda: None, lambda: None), takes=100)
    assert [message.get("body") for message in taken[1:]] == [b"1", b"2", b""]
    assert taken[0]["status"] == 200
    assert (b"cache-control", b"no-store") in taken[0]["headers"]
    assert taken[-1]["more_body"] is False
