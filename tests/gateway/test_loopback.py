"""The client of engines on this machine, against servers that answer well, badly, late and not at all."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import socket
import time
from collections.abc import AsyncIterator, Callable

import pytest
import uvloop

from fakes import FakeTransport
from rolecall.errors import UpstreamError, UpstreamTimeout, UpstreamUnreachable
from rolecall.gateway.http_request import Pieces, loopback_address
from rolecall.gateway.loopback import ByAddress, LoopbackTransport
from rolecall.gateway.upstream import Take, UpstreamResponse
from scripted_server import Peer, Script, Server, answering, answering_once, scripted

HEAD = b"HTTP/1.1 200 OK\r\n"
OK = HEAD + b"Content-Length: 2\r\n\r\nok"
ENDLESS = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
CHUNK = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
MB = 2**20


pytestmark = pytest.mark.filterwarnings("ignore:Overriding the .event_loop_policy. fixture")


@pytest.fixture(params=[asyncio.DefaultEventLoopPolicy, uvloop.EventLoopPolicy], ids=["asyncio", "uvloop"])
def event_loop_policy(request: pytest.FixtureRequest) -> asyncio.AbstractEventLoopPolicy:
    """Each test runs on both loops, which differ in when they tell what."""
    policy: asyncio.AbstractEventLoopPolicy = request.param()
    return policy


@pytest.fixture
async def transport() -> AsyncIterator[LoopbackTransport]:
    """The client."""
    transport = LoopbackTransport()
    yield transport
    await transport.aclose()


async def whole(response: UpstreamResponse, idle_s: float = 5) -> bytes:
    """Read an answer to its end, and close it."""
    try:
        return b"".join([chunk async for chunk in response.chunks(idle_s)])
    finally:
        await response.close()


async def read_into(got: list[bytes], response: UpstreamResponse, idle_s: float) -> None:
    """Read an answer, keeping what came before an error."""
    async for chunk in response.chunks(idle_s):
        got.append(chunk)  # noqa: PERF401 - a comprehension would lose it


async def ask(transport: LoopbackTransport, server: Server, body: bytes | Pieces = b"{}") -> bytes:
    """Send a request and return the body of its answer."""
    return await whole(await transport.post(server.url, {}, body, head_timeout_s=5))


async def parts(*data: bytes) -> AsyncIterator[bytes]:
    """Give a body in parts."""
    for part in data:
        yield part


# -- answers


@pytest.mark.parametrize("bytewise", [False, True])
@pytest.mark.parametrize(
    ("answer", "status", "body"),
    [
        (OK, 200, b"ok"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n1\r\no\r\n1;a=b\r\nk\r\n0\r\nTrailer: x\r\n\r\n", 200, b"ok"),
        (HEAD + b"\r\nok", 200, b"ok"),
        (b"HTTP/1.0 200 OK\r\n\r\nok", 200, b"ok"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", 204, b""),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 102 Processing\r\n\r\n" + OK, 200, b"ok"),
        (HEAD + b"Content-Encoding: gzip\r\nContent-Length: 3\r\n\r\n\x1f\x8b\x00", 200, b"\x1f\x8b\x00"),
        (b"HTTP/1.1 429 Slow\r\nRetry-After: 7\r\nContent-Length: 1\r\n\r\nx", 429, b"x"),
    ],
)
async def test_answers(
    transport: LoopbackTransport,
    answer: bytes,
    status: int,
    body: bytes,
    bytewise: bool,  # noqa: FBT001
) -> None:
    """Status, headers and body come as they were sent, however long the body is said to be."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(answer, bytewise=bytewise)

    async with scripted(script) as server:
        response = await transport.post(server.url, {}, b"{}", head_timeout_s=5)
        assert response.status == status
        assert response.headers.get("retry-after") == ("7" if status == 429 else None)
        assert await whole(response) == body


async def test_an_answer_to_head(transport: LoopbackTransport) -> None:
    """It has no body, whatever length it names, and the next request goes over the same connection."""
    async with scripted(answering(HEAD + b"Content-Length: 5\r\n\r\n")) as server:
        for _ in range(2):
            response = await transport.request("HEAD", server.url, {}, head_timeout_s=5)
            assert await whole(response) == b""
        assert server.accepted == 1


async def test_each_part_is_passed_on_when_it_comes(transport: LoopbackTransport) -> None:
    """Nothing waits for what comes next, or for a bit more of it."""
    go_on = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(ENDLESS)
        for part in (b"1\r\na\r\n1", b"\r\nb\r\n", b"0\r\n\r\n"):
            await go_on.wait()
            go_on.clear()
            await peer.send(part)

    async with scripted(script) as server:
        response = await transport.post(server.url, {}, b"{}", head_timeout_s=5)
        got = []
        go_on.set()
        async for chunk in response.chunks(5):
            got.append(chunk)
            go_on.set()
        assert got == [b"a", b"b"]
        await response.close()


# -- requests


async def test_the_request_as_it_is_sent(transport: LoopbackTransport) -> None:
    """The address in the first line and in Host, the headers as given, the length."""
    requests: list[bytes] = []
    async with scripted(answering(OK, requests)) as server:
        headers = {"content-type": "application/json", "authorization": "Bearer key"}
        response = await transport.post(f"{server.url}?a=b%20c", headers, b'{"a": 1}', head_timeout_s=5)
        await response.close()
        head, _, body = requests[0].partition(b"\r\n\r\n")
        assert body == b'{"a": 1}'
        assert head.split(b"\r\n") == [
            b"POST /v1/chat/completions?a=b%20c HTTP/1.1",
            b"host: 127.0.0.1:%d" % server.port,
            b"content-type: application/json",
            b"authorization: Bearer key",
            b"content-length: 8",
        ]


@pytest.mark.parametrize("size", [0, 1, 2**18, 2**18 + 1, 5 * MB])
async def test_large_bodies_arrive_whole(transport: LoopbackTransport, size: int) -> None:
    """Of any size, in one piece or in parts of which the length is known or not."""
    requests: list[bytes] = []
    body = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    async with scripted(answering(OK, requests)) as server:
        await ask(transport, server, body)
        given, length = parts(body[: size // 2], b"", body[size // 2 :]), {"content-length": str(size)}
        await (await transport.post(server.url, length, given, head_timeout_s=5)).close()
        pieces = Pieces([body[: size // 3], memoryview(body)[size // 3 :], b""])
        await (await transport.post(server.url, length, pieces, head_timeout_s=5)).close()
        assert [request.partition(b"\r\n\r\n")[2] for request in requests] == [body, body, body]


async def test_a_body_without_a_length_is_sent_in_chunks(transport: LoopbackTransport) -> None:
    """Empty parts would end it, and are left out."""
    requests: list[bytes] = []
    async with scripted(answering(OK, requests)) as server:
        response = await transport.post(server.url, {}, parts(b"abc", b"", b"x" * 20), head_timeout_s=5)
        assert await whole(response) == b"ok"
        assert requests[0].endswith(b"\r\n\r\n3\r\nabc\r\n14\r\n" + b"x" * 20 + b"\r\n0\r\n\r\n")
        assert b"transfer-encoding: chunked" in requests[0]


@pytest.mark.parametrize("body", [b"abc", [b"a", b"bc"], [b"abcdef"]])
async def test_a_body_of_another_length(transport: LoopbackTransport, body: bytes | list[bytes]) -> None:
    """Its rest would be taken for the next request: it is not sent, and the connection closed."""
    async with scripted(answering(OK)) as server:
        given = body if isinstance(body, bytes) else parts(*body)
        with pytest.raises(UpstreamError, match="not as long as"):
            await transport.post(server.url, {"content-length": "5"}, given, head_timeout_s=5)
        if server.accepted:
            await server.alone()


@pytest.mark.parametrize(
    "value", ["Bearer a\r\nx: y", "Bearer \xe9", "Bearer a\0", "Bearer a\n", " Bearer a", "\udc80"]
)
async def test_a_header_that_http_does_not_allow_is_not_quoted(transport: LoopbackTransport, value: str) -> None:
    """It may be a key."""
    with pytest.raises(UpstreamError) as caught:
        await transport.post("http://127.0.0.1:1/", {"authorization": value}, b"", head_timeout_s=5)
    assert caught.value.message == "The engine's address or API key holds characters that HTTP does not allow."


@pytest.mark.parametrize(
    ("url", "is_ours"),
    [
        ("http://127.0.0.1:8000/v1", True),
        ("http://localhost/v1?a=b", True),
        ("http://[::1]:8000", True),
        ("http://127.8.9.1:65535/", True),
        ("https://127.0.0.1:8000/v1", False),
        ("http://192.168.1.1:8000/v1", False),
        ("http://8.8.8.8/", False),
        ("http://localhost.example.org/", False),
        ("http://key@127.0.0.1:8000/", False),
        ("http://127.0.0.1:65536/", False),
        ("http://127.0.0.1:8000/a b", False),
        ("http://127.0.0.1:8000/a\r\nx: y", False),
        ("http://127.0.0.1:8000/\xe9", False),
        ("http://127.1/", False),
    ],
)
def test_which_addresses_it_is_for(url: str, is_ours: bool) -> None:  # noqa: FBT001
    """Plain http on loopback; whatever is unusual is left to httpx."""
    assert (loopback_address(url) is not None) is is_ours


async def test_other_addresses_are_left_to_the_other_transport(transport: LoopbackTransport) -> None:
    """TLS and other machines are httpx's."""

    def nobody(url: str, body: bytes) -> UpstreamResponse:
        raise UpstreamUnreachable("far away")

    far = FakeTransport(nobody)
    both = ByAddress(transport, far)
    async with scripted(answering(OK)) as server:
        assert await whole(await both.post(server.url, {}, b"{}", head_timeout_s=5)) == b"ok"
        for url in ("https://127.0.0.1/v1", "http://192.0.2.1/v1"):
            with pytest.raises(UpstreamUnreachable, match="far away"):
                await both.post(url, {}, b"{}", head_timeout_s=5)
        assert far.requests == [("https://127.0.0.1/v1", b"{}"), ("http://192.0.2.1/v1", b"{}")]


# -- connections that are kept


async def test_connections_are_used_again(transport: LoopbackTransport) -> None:
    """One after the other over one connection; at once over several, which are kept too."""
    async with scripted(answering(OK)) as server:
        for _ in range(5):
            assert await ask(transport, server) == b"ok"
        assert server.accepted == 1
        await asyncio.gather(*(ask(transport, server) for _ in range(4)))
        assert server.accepted == 4
        await asyncio.gather(*(ask(transport, server) for _ in range(4)))
        assert server.accepted == 4


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 400 Bad\r\nContent-Length: 2\r\n\r\nno",
        HEAD + b"Connection: close\r\nContent-Length: 2\r\n\r\nno",
        b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nno",
        HEAD + b"Content-Length: 2\r\n\r\nno" + OK,
    ],
    ids=["error", "close", "HTTP/1.0", "unasked"],
)
async def test_connections_that_are_not_kept(transport: LoopbackTransport, answer: bytes) -> None:
    """After an error, which llama-server ends it with; when the engine says so; when there is more than was asked."""
    async with scripted(answering(answer)) as server:
        for _ in range(2):
            assert await ask(transport, server) == b"no"
        assert server.accepted == 2
        await server.alone()


async def test_what_comes_unasked_closes_a_kept_connection(transport: LoopbackTransport) -> None:
    """Such bytes are never the answer to the next request."""
    go_on = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK)
        await go_on.wait()
        await peer.send(HEAD + b"Content-Length: 5\r\n\r\nwrong")
        await peer.left()

    async with scripted(script) as server:
        assert await ask(transport, server) == b"ok"
        go_on.set()
        await server.alone()
        assert await ask(transport, server) == b"ok"
        assert server.accepted == 2


async def test_kept_connections_are_closed_soon() -> None:
    """After the limit of idle time, each."""
    transport = LoopbackTransport(idle_s=0.05)
    async with scripted(answering(OK)) as server:
        await asyncio.gather(*(ask(transport, server) for _ in range(3)))
        assert server.connected == 3
        await server.alone()
        assert transport._idle == {}
        assert await ask(transport, server) == b"ok"
        await server.alone()
    await transport.aclose()


async def test_a_loop_that_was_held_up_uses_no_old_connection() -> None:
    """The limit holds even if nobody came to close it in time."""
    transport = LoopbackTransport(idle_s=0.05)
    async with scripted(answering(OK)) as server:
        await ask(transport, server)
        time.sleep(0.1)  # noqa: ASYNC251 - the loop is held up
        await ask(transport, server)
        assert server.accepted == 2
    await transport.aclose()


async def test_no_more_are_kept_than_the_limit() -> None:
    """The others are closed at once."""
    transport = LoopbackTransport(most_idle=2)
    async with scripted(answering(OK)) as server:
        await asyncio.gather(*(ask(transport, server) for _ in range(5)))
        await ask(transport, server)
        assert len(transport._idle[("127.0.0.1", server.port)]) == 2
        await transport.aclose()
        await server.alone()
        assert transport._idle == {}


async def test_nothing_is_kept_to_an_engine_that_is_to_be_stopped(transport: LoopbackTransport) -> None:
    """It ends fast only when nobody is connected; other engines are not concerned."""
    async with scripted(answering(OK)) as server, scripted(answering(OK)) as other:
        await asyncio.gather(*(ask(transport, each) for each in (server, server, other)))
        transport.disconnect(f"http://127.0.0.1:{server.port}/v1")
        await server.alone()
        assert other.connected == 1
        transport.disconnect("https://example.org/")


async def test_nothing_is_kept_after_the_end() -> None:
    """An answer that was open at the end of the client is the last one of its connection."""
    transport = LoopbackTransport()
    async with scripted(answering(OK)) as server:
        response = await transport.post(server.url, {}, b"", head_timeout_s=5)
        await transport.aclose()
        assert await whole(response) == b"ok"
        await server.alone()


# -- stale connections


def stale(requests: list[bytes], first: Callable[[Peer], None], second: bytes = OK) -> Script:
    """Return a script whose first connection answers once, and breaks off when it is used again."""

    async def script(peer: Peer) -> None:
        requests.append(await peer.request())
        await peer.send(OK if peer.number == 1 else second)
        if peer.number == 1:
            requests.append(await peer.request())
            first(peer)
        else:
            await peer.left()

    return script


@pytest.mark.parametrize("end", [Peer.reset, lambda peer: None], ids=["reset", "closed"])
@pytest.mark.parametrize("size", [2, 300_000])
async def test_a_stale_connection_is_replaced_once(
    transport: LoopbackTransport, end: Callable[[Peer], None], size: int
) -> None:
    """A request that a kept connection did not take is sent over a new one, in whatever pieces its body is."""
    for body in (b"x" * size, Pieces([b"y", b"x" * (size - 1)])):
        requests: list[bytes] = []
        async with scripted(stale(requests, end)) as server:
            await ask(transport, server)
            assert await ask(transport, server, body) == b"ok"
            assert server.accepted == 2
            assert requests[1] == requests[2]
            assert requests[2].endswith(bytes(body))


async def test_a_new_connection_that_breaks_is_not_replaced(transport: LoopbackTransport) -> None:
    """One more try is all: the request may be what the engine dies of."""
    requests: list[bytes] = []

    async def script(peer: Peer) -> None:
        requests.append(await peer.request())
        if peer.number == 1:
            await peer.send(OK)
            await peer.request()

    async with scripted(script) as server:
        await ask(transport, server)
        with pytest.raises(UpstreamError, match="broke off before it answered"):
            await ask(transport, server)
        assert server.accepted == 2
        with pytest.raises(UpstreamError, match="broke off before it answered"):
            await ask(transport, server)
        assert server.accepted == 3


@pytest.mark.parametrize("began", [b"H", HEAD, b"HTTP/1.1 100 Continue\r\n\r\n"])
async def test_what_began_to_be_answered_is_not_sent_again(transport: LoopbackTransport, began: bytes) -> None:
    """An engine that sent anything has begun to work on the request."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK)
        await peer.request()
        await peer.send(began)

    async with scripted(script) as server:
        await ask(transport, server)
        with pytest.raises(UpstreamError, match="broke off before it answered"):
            await ask(transport, server)
        assert server.accepted == 1


async def test_an_engine_that_died_of_the_request_was_reached(transport: LoopbackTransport) -> None:
    """Nobody may think that nothing was sent, and send it to the next engine, although nobody listens any more."""
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setblocking(False)  # noqa: FBT003
    loop = asyncio.get_running_loop()

    async def engine() -> None:
        connection, _ = await loop.sock_accept(listener)
        await loop.sock_recv(connection, 65536)
        await loop.sock_sendall(connection, OK)
        await loop.sock_recv(connection, 65536)
        listener.close()
        connection.close()

    dying = asyncio.create_task(engine())
    url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
    await whole(await transport.post(url, {}, b"{}", head_timeout_s=5))
    with pytest.raises(UpstreamError, match="broke off") as caught:
        await transport.post(url, {}, b"{}", head_timeout_s=5)
    assert not isinstance(caught.value, UpstreamUnreachable)
    await dying


async def test_an_engine_that_died_unused_was_not_reached(transport: LoopbackTransport) -> None:
    """Though the loop did not come to notice its end before the next request: that is for its successor."""
    listener = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{listener.getsockname()[1]}/"

    def engine() -> socket.socket:
        connection, _ = listener.accept()
        connection.recv(65536)
        connection.sendall(OK)
        return connection

    accepting = asyncio.create_task(asyncio.to_thread(engine))
    await whole(await transport.post(url, {}, b"{}", head_timeout_s=5))
    connection = await accepting
    connection.close()  # the loop does not run until the next request is sent
    time.sleep(0.01)  # noqa: ASYNC251 - not so soon that nobody looks at the connection
    listener.close()
    with pytest.raises(UpstreamUnreachable):
        await transport.post(url, {}, b"{}", head_timeout_s=5)


async def test_who_gives_up_as_the_answer_comes_leaves_no_connection() -> None:
    """In whatever turn of the loop that is: the connection is kept for others, or closed."""
    transport = LoopbackTransport(idle_s=0.05)
    async with scripted(answering(OK)) as server:
        for turns in [*range(25)] * 8:
            asking = asyncio.create_task(transport.post(server.url, {}, b"{}", head_timeout_s=5))
            for _ in range(turns):
                await asyncio.sleep(0)
            asking.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await (await asking).close()
        await server.alone()
    await transport.aclose()


async def test_a_body_in_parts_goes_over_a_new_connection(transport: LoopbackTransport) -> None:
    """It could not be sent again."""
    async with scripted(answering(OK)) as server:
        await ask(transport, server)
        await whole(await transport.post(server.url, {}, parts(b"abc"), head_timeout_s=5))
        assert server.accepted == 2


# -- limits of time


async def silent(peer: Peer) -> None:
    """Read the request, and say nothing."""
    await peer.request()
    await peer.left()


async def deaf(peer: Peer) -> None:
    """Read nothing."""
    peer.writer.transport.pause_reading()  # type: ignore[attr-defined]
    await asyncio.sleep(60)


@pytest.mark.parametrize("size", [2, 20 * MB])
@pytest.mark.parametrize("script", [silent, deaf])
async def test_no_head_in_time(transport: LoopbackTransport, script: Script, size: int) -> None:
    """The connection is closed then, and the request not sent again, over a kept connection neither."""
    async with scripted(script) as server:
        with pytest.raises(UpstreamTimeout) as caught:
            await transport.post(server.url, {}, b"x" * size, head_timeout_s=0.2)
        assert caught.value.message == "The engine sent nothing for 0.2 s (backend_timeout_ms)."
        assert server.accepted == 1
        if script is silent:
            await server.alone()


async def test_a_body_that_is_not_given_in_time(transport: LoopbackTransport) -> None:
    """The limit holds for whoever gives the body as well."""

    async def slow() -> AsyncIterator[bytes]:
        yield b"x"
        await asyncio.sleep(60)

    async with scripted(silent) as server:
        with pytest.raises(UpstreamTimeout):
            await transport.post(server.url, {}, slow(), head_timeout_s=0.1)
        await server.alone()


async def test_heads_that_only_announce_others(transport: LoopbackTransport) -> None:
    """They are no answer."""

    async def script(peer: Peer) -> None:
        await peer.request()
        while True:
            await peer.send(b"HTTP/1.1 102 Processing\r\n\r\n")
            await asyncio.sleep(0.02)

    async with scripted(script) as server:
        with pytest.raises(UpstreamTimeout):
            await transport.post(server.url, {}, b"", head_timeout_s=0.2)


@pytest.mark.parametrize("began", [ENDLESS, ENDLESS + b"3\r\nabc\r\n", HEAD + b"\r\nabc"])
async def test_a_pause_in_the_answer(transport: LoopbackTransport, began: bytes) -> None:
    """What came is passed on, then it is late."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(began)
        await peer.left()

    async with scripted(script) as server:
        response = await transport.post(server.url, {}, b"{}", head_timeout_s=5)
        got: list[bytes] = []
        since = time.monotonic()
        with pytest.raises(UpstreamTimeout) as caught:
            await read_into(got, response, 0.2)
        assert caught.value.message == "The engine sent nothing for 0.2 s."
        assert 0.19 < time.monotonic() - since < 1
        assert b"".join(got) == began.rpartition(b"\r\n\r\n")[2].removeprefix(b"3\r\n").removesuffix(b"\r\n")
        await response.close()
        await server.alone()


async def test_bytes_that_are_no_part_of_the_body_do_not_count(transport: LoopbackTransport) -> None:
    """Of an engine that sends the size of a chunk digit by digit nothing comes."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(ENDLESS)
        while True:
            await peer.send(b"0")
            await asyncio.sleep(0.05)

    async with scripted(script) as server:
        response = await transport.post(server.url, {}, b"{}", head_timeout_s=5)
        with pytest.raises(UpstreamTimeout):
            await whole(response, 0.2)


async def test_a_steady_answer_and_a_slow_reader_are_never_late(transport: LoopbackTransport) -> None:
    """The pause is what counts, not the whole; nor the time in which nobody asked for more."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(ENDLESS)
        for _ in range(8):
            await peer.send(b"1\r\nx\r\n")
            await asyncio.sleep(0.05)
        await peer.send(b"0\r\n\r\n")

    async with scripted(script) as server:
        response = await transport.post(server.url, {}, b"{}", head_timeout_s=5)
        got = b""
        async for chunk in response.chunks(0.2):
            got += chunk
            await asyncio.sleep(0.25 if len(got) == 4 else 0)
        assert got == b"x" * 8
        await response.close()


async def test_an_answer_that_never_ends() -> None:
    """A limit for the whole ends it."""
    transport = LoopbackTransport(total_s=0.3)

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(ENDLESS)
        while True:
            await peer.send(b"1\r\nx\r\n")
            await asyncio.sleep(0.05)

    async with scripted(script) as server:
        response = await transport.post(server.url, {}, b"{}", head_timeout_s=5)
        with pytest.raises(UpstreamTimeout, match=r"not complete after 0\.3 s"):
            await whole(response)
    await transport.aclose()


# -- engines that break off, refuse, or are not there


async def test_nobody_listens(transport: LoopbackTransport) -> None:
    """Then nothing was sent."""
    async with scripted(silent) as server:
        pass
    with pytest.raises(UpstreamUnreachable, match="cannot be reached"):
        await transport.post(server.url, {}, b"", head_timeout_s=5)


async def test_nobody_accepts(transport: LoopbackTransport) -> None:
    """An engine that hangs takes no connections once its queue is full."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        waiting = [socket.socket() for _ in range(3)]
        for each in waiting:
            each.setblocking(False)  # noqa: FBT003
            each.connect_ex(listener.getsockname())
        with pytest.raises(UpstreamUnreachable, match=r"no connection within 0\.2 s"):
            await transport.post(f"http://127.0.0.1:{listener.getsockname()[1]}/", {}, b"", head_timeout_s=0.2)
        for each in waiting:
            each.close()


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"", "before it answered: it closed the connection"),
        (HEAD, "before it answered: it closed the connection"),
        (b"\x16\x03\x01\x02", "before it answered: it does not speak HTTP"),
        (b"SSH-2.0-secret\r\n", "before it answered: it does not speak HTTP"),
        (HEAD + b"x: " + b"y" * 70_000, "before it answered: its head has more than 65536 bytes"),
        (
            b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
            "before it answered: it answered with",
        ),
        (HEAD + b"Content-Length: 5\r\n\r\nabc", "in the middle of its answer: it closed the connection"),
        (ENDLESS + b"3\r\nabc\r\n", "in the middle of its answer: it closed the connection"),
        (ENDLESS + b"3\r\nabc\r\nsecret\r\n", "in the middle of its answer: it does not speak HTTP"),
    ],
)
async def test_answers_that_are_none(transport: LoopbackTransport, answer: bytes, reason: str) -> None:
    """What came of the body is passed on; the error says where it broke off, and quotes nothing."""
    async with scripted(answering_once(answer)) as server:
        got: list[bytes] = []

        async def exchange() -> None:
            await read_into(got, await transport.post(server.url, {}, b"{}", head_timeout_s=5), 5)

        with pytest.raises(UpstreamError) as caught:
            await exchange()
        assert caught.value.message.startswith(f"The engine broke off {reason}")
        assert "secret" not in caught.value.message
        assert got == ([b"abc"] if "middle" in reason else [])


@pytest.mark.parametrize("began", [HEAD + b"\r\nabc", ENDLESS + b"3\r\nabc\r\n"])
async def test_a_reset_is_no_end(transport: LoopbackTransport, began: bytes) -> None:
    """Not of an answer without a length, either."""
    go_on = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(began)
        await go_on.wait()
        peer.reset()

    async with scripted(script) as server:
        response = await transport.post(server.url, {}, b"{}", head_timeout_s=5)
        chunks = response.chunks(5)
        assert await anext(chunks) == b"abc"
        go_on.set()
        with pytest.raises(UpstreamError, match="in the middle of its answer: the connection was lost"):
            await anext(chunks)
        await response.close()


@pytest.mark.parametrize("in_parts", [False, True])
async def test_a_refusal_before_the_body_was_read(transport: LoopbackTransport, in_parts: bool) -> None:  # noqa: FBT001
    """The rest is not sent, the refusal is passed on, and the connection not used again."""

    async def script(peer: Peer) -> None:
        await peer.reader.readuntil(b"\r\n\r\n")
        peer.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await peer.send(b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno")
        peer.writer.transport.resume_reading()  # type: ignore[attr-defined]
        await peer.left()

    async with scripted(script) as server:
        size = 50 * MB
        body = parts(*[b"x" * MB] * 50) if in_parts else b"x" * size
        response = await transport.post(server.url, {"content-length": str(size)}, body, head_timeout_s=5)
        assert response.status == 413
        assert await whole(response) == b"no"
        await server.alone()


async def test_a_refusal_with_a_reset(transport: LoopbackTransport) -> None:
    """It was there before the connection broke under the rest of the body."""

    async def script(peer: Peer) -> None:
        await peer.reader.readuntil(b"\r\n\r\n")
        await peer.send(b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno")

    async with scripted(script) as server:
        response = await transport.post(server.url, {}, b"x" * 50 * MB, head_timeout_s=5)
        assert response.status == 413
        assert await whole(response) == b"no"


async def test_a_body_that_fails(transport: LoopbackTransport) -> None:
    """The failure is passed on, and the engine sees that the request was not whole."""

    async def failing() -> AsyncIterator[bytes]:
        yield b"x"
        raise KeyError("lost")

    async with scripted(silent) as server:
        with pytest.raises(KeyError, match="lost"):
            await transport.post(server.url, {}, failing(), head_timeout_s=5)
        await server.alone()


async def test_an_error_that_quotes_the_key(transport: LoopbackTransport) -> None:
    """The key is taken out, wherever the answer is split; an answer that is none of an error passes as it comes."""
    body = b'{"error": "wrong key: sk-12345"}'
    answer = b"HTTP/1.1 401 No\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(answer, bytewise=True)

    async with scripted(script) as server:
        headers = {"authorization": "Bearer sk-12345"}
        response = await transport.post(server.url, headers, b"{}", head_timeout_s=5)
        assert await whole(response) == body.replace(b"sk-12345", b"[API key]")
        response = await transport.post(server.url, {}, b"{}", head_timeout_s=5)
        assert await whole(response) == body


# -- back-pressure


async def test_an_engine_waits_for_a_slow_reader(transport: LoopbackTransport) -> None:
    """What it sends is not piled up, and all of it comes in the end."""
    sent, blocks = 0, 400

    async def script(peer: Peer) -> None:
        nonlocal sent
        await peer.request()
        await peer.send(ENDLESS)
        for _ in range(blocks):
            await peer.send(CHUNK)
            sent += len(CHUNK)
        await peer.send(b"0\r\n\r\n")
        await peer.left()

    async with scripted(script) as server:
        response = await transport.post(server.url, {}, b"{}", head_timeout_s=5)
        chunks = response.chunks(5)
        size, before = len(await anext(chunks)), -1
        while sent > before:
            before = sent
            await asyncio.sleep(0.1)
        assert sent < 16 * MB  # what the buffers of the system take
        async for chunk in chunks:
            assert len(chunk) <= MB
            size += len(chunk)
        assert size == blocks * 0x10000
        await response.close()


async def test_a_body_waits_for_a_slow_engine(transport: LoopbackTransport) -> None:
    """It is asked for no more of it than the engine takes."""
    given, go_on = 0, asyncio.Event()

    async def body() -> AsyncIterator[bytes]:
        nonlocal given
        for _ in range(400):
            given += 0x10000
            yield b"x" * 0x10000

    async def script(peer: Peer) -> None:
        peer.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await go_on.wait()
        peer.writer.transport.resume_reading()  # type: ignore[attr-defined]
        await peer.request()
        await peer.send(OK)

    async with scripted(script) as server:
        headers = {"content-length": str(400 * 0x10000)}
        asked = asyncio.create_task(transport.post(server.url, headers, body(), head_timeout_s=10))
        before = -1
        while given > before:
            before = given
            await asyncio.sleep(0.1)
        assert given < 16 * MB
        go_on.set()
        assert await whole(await asked) == b"ok"
        assert given == 400 * 0x10000


# -- whoever leaves


async def test_closing_an_answer_tells_the_engine(transport: LoopbackTransport) -> None:
    """Within 50 ms, and it is harmless to close it again."""
    gone = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(ENDLESS + b"1\r\nx\r\n")
        await peer.left()
        gone.set()

    async with scripted(script) as server:
        response = await transport.post(server.url, {}, b"{}", head_timeout_s=5)
        chunks = response.chunks(5)
        assert await anext(chunks) == b"x"
        began = time.monotonic()
        await response.close()
        await response.close()
        await gone.wait()
        assert time.monotonic() - began < 0.05
        assert [chunk async for chunk in chunks] == []


async def test_closing_while_another_task_reads(transport: LoopbackTransport) -> None:
    """The reader does not wait for ever."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(ENDLESS)
        await peer.left()

    async with scripted(script) as server:
        response = await transport.post(server.url, {}, b"{}", head_timeout_s=5)
        reading = asyncio.create_task(whole(response))
        await asyncio.sleep(0.01)
        await response.close()
        with pytest.raises(UpstreamError, match="closed while"):
            await reading


@pytest.mark.parametrize("size", [10, 300_000])
@pytest.mark.parametrize("is_kept", [False, True])
async def test_no_connection_is_left_whenever_a_request_is_cancelled(
    transport: LoopbackTransport,
    size: int,
    is_kept: bool,  # noqa: FBT001
) -> None:
    """After any number of turns of the loop: before, while and after the connection is made and the body is sent."""

    async def script(peer: Peer) -> None:
        while (await peer.request()).endswith(b"{}"):
            await peer.send(OK)
        await peer.left()

    async with scripted(script) as server:
        gc.disable()  # it would close what is lost
        try:
            for turns in range(40):
                if is_kept:
                    await ask(transport, server)
                task = asyncio.create_task(transport.post(server.url, {}, b"x" * size, head_timeout_s=5))
                for _ in range(turns):
                    await asyncio.sleep(0)
                task.cancel()
                await asyncio.wait({task})
                assert task.cancelled()
            assert server.accepted > 10
            transport.disconnect(server.url)
            await server.alone()
        finally:
            gc.enable()


async def test_an_exchange_leaves_nothing_for_the_garbage_collector(transport: LoopbackTransport) -> None:
    """Bodies are large: they go when nobody needs them, not at the next collection; after a failure neither."""
    answers = itertools.cycle([OK, ENDLESS + b"1\r\nx\r\n", b"junk", b"HTTP/1.1 500 No\r\n\r\n", b""])

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(answer := next(answers))
        if not answer:
            await peer.left()

    async with scripted(script) as server:
        gc.collect()
        gc.disable()
        try:
            for _ in range(10):
                with contextlib.suppress(UpstreamError):
                    await whole(await transport.post(server.url, {}, b"{}", head_timeout_s=0.1))
            left = {"HttpAnswer", "HttpResponseParser", "HttpRequest"}
            assert [type(each) for each in gc.get_objects() if type(each).__name__ in left] == []
        finally:
            gc.enable()


# -- answers that are piped


def into(got: list[bytes], *, more: bool = True) -> Take:
    """Return what keeps the parts, and wants more or not."""

    def take(part: bytes) -> bool:
        got.append(part)
        return more

    return take


async def test_parts_are_piped_until_no_more_is_wanted(transport: LoopbackTransport) -> None:
    """Each as it comes; what came meanwhile is kept for the next time, in one piece; then the end is told."""
    go_on, got = asyncio.Event(), list[bytes]()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(ENDLESS + b"1\r\na\r\n")
        await go_on.wait()
        await peer.send(b"1\r\nb\r\n")
        await asyncio.sleep(0.01)
        await peer.send(b"1\r\nc\r\n0\r\n\r\n")
        await peer.request()

    async with scripted(script) as server:
        response = await transport.post(server.url, {}, b"{}", head_timeout_s=5)

        def take(part: bytes) -> bool:
            got.append(part)
            return part != b"a"

        assert not await response.pipe(take, 5)
        assert got == [b"a"]
        go_on.set()
        await asyncio.sleep(0.1)
        assert await response.pipe(take, 5)
        assert got == [b"a", b"bc"]
        assert await response.pipe(take, 5)
        await response.close()
        assert await response.pipe(take, 5)
        assert server.connected == 1


@pytest.mark.parametrize(
    ("rest", "error"),
    [
        (b"", "in the middle of its answer: it closed the connection"),
        (b"junk\r\n", "in the middle of its answer: it does not speak HTTP"),
    ],
)
async def test_what_came_before_an_error_is_piped(transport: LoopbackTransport, rest: bytes, error: str) -> None:
    """The error is raised where it is piped."""
    async with scripted(answering_once(ENDLESS + b"1\r\na\r\n" + rest)) as server:
        got: list[bytes] = []
        response = await transport.post(server.url, {}, b"{}", head_timeout_s=5)
        with pytest.raises(UpstreamError, match=error):
            await response.pipe(into(got), 5)
        assert got == [b"a"]
        await response.close()


async def test_who_takes_may_fail(transport: LoopbackTransport) -> None:
    """That is raised where it is piped, and the connection is of no use any more."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(ENDLESS)
        await asyncio.sleep(0.01)
        await peer.send(b"1\r\na\r\n")
        await peer.left()

    def fails(part: bytes) -> bool:
        raise KeyError(part)

    async with scripted(script) as server:
        response = await transport.post(server.url, {}, b"{}", head_timeout_s=5)
        with pytest.raises(KeyError):
            await response.pipe(fails, 5)
        await response.close()
        await server.alone()


async def test_who_takes_may_fail_with_the_last_bytes(transport: LoopbackTransport) -> None:
    """The end of the answer hides nothing."""

    def fails(part: bytes) -> bool:
        raise KeyError(part)

    async with scripted(answering_once(OK)) as server:
        response = await transport.post(server.url, {}, b"{}", head_timeout_s=5)
        with pytest.raises(KeyError):
            await response.pipe(fails, 5)
        await response.close()


async def test_a_pause_while_it_is_piped(transport: LoopbackTransport) -> None:
    """The pause is counted from the last part."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(ENDLESS)
        for _ in range(5):
            await peer.send(b"1\r\nx\r\n")
            await asyncio.sleep(0.1)
        await peer.left()

    async with scripted(script) as server:
        got: list[bytes] = []
        response = await transport.post(server.url, {}, b"{}", head_timeout_s=5)
        with pytest.raises(UpstreamTimeout, match=r"sent nothing for 0\.3 s"):
            await response.pipe(into(got), 0.3)
        assert b"".join(got) == b"x" * 5
        await response.close()


async def test_an_engine_waits_while_nothing_is_piped(transport: LoopbackTransport) -> None:
    """What it sends is not piled up, and all of it comes in the end."""
    sent, blocks, got = 0, 400, list[bytes]()

    async def script(peer: Peer) -> None:
        nonlocal sent
        await peer.request()
        await peer.send(ENDLESS)
        for _ in range(blocks):
            await peer.send(CHUNK)
            sent += len(CHUNK)
        await peer.send(b"0\r\n\r\n")
        await peer.left()

    async with scripted(script) as server:
        response = await transport.post(server.url, {}, b"{}", head_timeout_s=5)
        assert not await response.pipe(into(got, more=False), 5)
        before = -1
        while sent > before:
            before = sent
            await asyncio.sleep(0.1)
        assert sent < 16 * MB
        assert await response.pipe(into(got), 5)
        assert max(map(len, got)) <= MB
        assert sum(map(len, got)) == blocks * 0x10000
        await response.close()


# -- answers of which only the end is missing


async def until_done(transport: LoopbackTransport, server: Server) -> UpstreamResponse:
    """Read an answer up to its last mark."""
    response = await transport.post(server.url, {}, b"{}", head_timeout_s=5)
    assert not await response.pipe(lambda part: not part.endswith(b"DONE"), 5)
    return response


async def test_a_connection_is_kept_when_the_end_comes_later(transport: LoopbackTransport) -> None:
    """Nobody waits for it, and the next request goes over the same connection."""

    async def script(peer: Peer) -> None:
        while True:
            await peer.request()
            await peer.send(ENDLESS + b"4\r\nDONE\r\n")
            await asyncio.sleep(0.01)
            await peer.send(b"0\r\n\r\n")

    async with scripted(script) as server:
        for _ in range(3):
            response = await until_done(transport, server)
            response.leave()
            response.leave()
            await response.close()
            await asyncio.sleep(0.05)
        assert server.accepted == 1


@pytest.mark.parametrize("rest", [b"", b"1\r\nx\r\n", b"junk"])
async def test_a_connection_whose_answer_does_not_end_is_closed(transport: LoopbackTransport, rest: bytes) -> None:
    """Soon, whatever else comes on it."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(ENDLESS + b"4\r\nDONE\r\n")
        await asyncio.sleep(0.01)
        await peer.send(rest)
        await peer.left()

    async with scripted(script) as server:
        (await until_done(transport, server)).leave()
        await server.alone()
        assert transport._idle == {}


@pytest.mark.parametrize("how", ["the engine is to be stopped", "it is the end"])
async def test_no_end_is_waited_for(how: str) -> None:
    """Then the connection is closed at once."""
    transport = LoopbackTransport(end_s=60)

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(ENDLESS + b"4\r\nDONE\r\n")
        await peer.left()

    async with scripted(script) as server:
        (await until_done(transport, server)).leave()
        await asyncio.sleep(0)
        if how == "it is the end":
            await transport.aclose()
        else:
            transport.disconnect(server.url)
        await server.alone()
    await transport.aclose()
