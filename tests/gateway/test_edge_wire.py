"""How an answer is written to the connection: in how many pieces, and when."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from rolecall.gateway.edge_wire import EdgeWire

STREAM = {"content-type": "text/event-stream"}


class Connection:
    """What uvicorn keeps of a request, of which the writes are noted."""

    def __init__(self) -> None:
        self.writes: list[bytes] = []
        self.received: list[dict[str, Any]] = []
        self.resumed: list[bool] = []
        self.is_done = False
        cycle = SimpleNamespace(
            transport=SimpleNamespace(write=self.writes.append, close=lambda: None),
            flow=SimpleNamespace(write_paused=False, resume_reading=lambda: self.resumed.append(True)),
            receive=self.receive,
            message_event=asyncio.Event(),
            on_response=self.done,
            disconnected=False,
            response_complete=False,
            keep_alive=True,
            default_headers=[(b"date", b"Thu, 01 Jan 1970 00:00:00 GMT")],
        )
        self.wire = EdgeWire(cast("Any", cycle), cast("Any", None), lambda _: None)
        self.cycle = cycle

    async def receive(self) -> dict[str, Any]:
        """Return what came next."""
        return self.received.pop(0)

    def done(self) -> None:
        """Note that the next request may come."""
        self.is_done = True


async def test_a_head_goes_with_the_first_part_if_that_is_there() -> None:
    """In one piece; the last mark goes with the end."""
    connection = Connection()
    connection.wire.head(200, STREAM)
    assert connection.wire.part(b"data: 1\n\n")
    connection.wire.part(b"data: 2\n\n")
    assert connection.wire.end(b"data: [DONE]\n\n")
    await asyncio.sleep(0)
    first, second, last = connection.writes
    assert first.startswith(
        b"HTTP/1.1 200 OK\r\ndate: Thu, 01 Jan 1970 00:00:00 GMT\r\n"
        b"content-type: text/event-stream\r\ntransfer-encoding: chunked\r\n"
    )
    assert first.endswith(b"\r\n\r\n9\r\ndata: 1\n\n\r\n")
    assert second == b"9\r\ndata: 2\n\n\r\n"
    assert last == b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"
    assert connection.is_done


async def test_a_head_waits_for_nothing() -> None:
    """It goes alone in the next turn of the loop."""
    connection = Connection()
    connection.wire.head(200, STREAM)
    await asyncio.sleep(0)
    (head,) = connection.writes
    assert head.endswith(b"\r\n\r\n")
    connection.wire.end(b"")
    assert connection.writes[1:] == [b"0\r\n\r\n"]


async def test_a_large_part_follows_its_head() -> None:
    """It is not copied to be put in its place."""
    connection, data = Connection(), b"x" * 2**17
    connection.wire.head(200, STREAM)
    connection.wire.part(data)
    assert connection.writes[0].endswith(b"\r\n\r\n20000\r\n")
    assert connection.writes[1] is data
    assert connection.writes[2:] == [b"\r\n"]


@pytest.mark.parametrize("when", ["before", "after"])
async def test_nothing_is_written_to_a_client_that_has_left(when: str) -> None:
    """Neither head nor parts nor end."""
    connection = Connection()
    connection.cycle.disconnected = when == "before"
    connection.wire.head(200, STREAM)
    connection.cycle.disconnected = True
    connection.wire.part(b"data: 1\n\n")
    connection.wire.end(b"")
    await asyncio.sleep(0)
    assert connection.writes == []
    assert not connection.is_done


async def test_nothing_is_written_behind_the_end() -> None:
    """It would be taken for the next answer."""
    connection = Connection()
    connection.wire.head(200, STREAM)
    connection.wire.end(b"data: [DONE]\n\n")
    written = list(connection.writes)
    connection.wire.part(b"data: {}\n\n")
    await asyncio.sleep(0)
    assert connection.writes == written


async def test_the_door_adds_headers() -> None:
    """They are made of those that the answer has."""
    connection = Connection()
    connection.wire.more = lambda headers: {"x-count": str(len(headers))}
    connection.wire.whole(200, {"a": "b", "content-length": "0"}, b"")
    (answer,) = connection.writes
    assert b"\r\nx-count: 2\r\n" in answer


async def test_the_last_part_of_a_body_lets_the_leaving_be_noticed() -> None:
    """Reading is paused behind a large part: it goes on with the last, and waits for whoever reads on before that."""
    connection = Connection()
    connection.received = [
        {"type": "http.request", "body": b"x" * 2**17, "more_body": True},
        {"type": "http.request", "body": b"x" * 2**17, "more_body": False},
    ]
    await connection.wire.receive()
    assert connection.resumed == []
    await connection.wire.receive()
    assert connection.resumed == [True]
