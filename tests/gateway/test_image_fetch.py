"""Images are fetched from public addresses alone, within limits, and what listens elsewhere stays unknown."""

from __future__ import annotations

import gzip
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager

import anyio
import httpx
import pytest

from fakes import FakeResolver
from gateway.image_servers import (
    Answer,
    ImageServer,
    client_tls,
    image_server,
    png,
    redirect,
    reply,
    server_tls,
)
from rolecall.core.addresses import NotFetchable
from rolecall.errors import TooManyRequests
from rolecall.gateway.image_fetch import MAX_AT_ONCE, ImageFetcher, SystemResolver
from rolecall.runtime.plain_http import plain_transport

LIMIT = 100_000
PUBLIC = "93.184.215.14"
PNG = png()


@pytest.fixture
def server() -> Iterator[ImageServer]:
    """Run a server that answers with a picture until it is told otherwise."""
    with image_server(reply(PNG, "200 OK", "Content-Type: text/html")) as running:
        yield running


@asynccontextmanager
async def fetcher(
    *servers: ImageServer, timeout_s: float = 10.0, at: str = "127.0.0.1", known: Mapping[str, list[list[str]]] = {}
) -> AsyncIterator[ImageFetcher]:
    """Run a fetcher that may fetch from cat.example on the ports of the servers."""
    resolver = FakeResolver(cat_example=[[at]], **known)
    hosts = [f"cat.example:{server.port}" for server in servers]
    made = ImageFetcher(hosts=hosts, timeout_s=timeout_s, resolver=resolver, transport=plain_transport(client_tls()))
    try:
        yield made
    finally:
        await made.aclose()


async def refusal(made: ImageFetcher, url: str, limit: int = LIMIT) -> str:
    """Return why nothing was fetched; it says nothing of what was there."""
    with pytest.raises(NotFetchable) as caught:
        await made.fetch(url, limit)
    words = str(caught.value)
    assert "127.0.0.1" not in words
    assert "secret" not in words
    return words


# -- what comes


async def test_an_image_comes_as_it_is(server: ImageServer) -> None:
    """Its bytes are unchanged, and its type is what it is and not what the server says."""
    async with fetcher(server) as made:
        fetched = await made.fetch(server.url, LIMIT)
    assert (fetched.media_type, fetched.data) == ("image/png", PNG)


async def test_the_request_tells_nothing(server: ImageServer) -> None:
    """It has the host's name and the target as it was written, and neither cookies nor credentials."""
    server.answer = reply(PNG, "200 OK", "Set-Cookie: id=1")
    async with fetcher(server) as made:
        for _ in range(2):
            await made.fetch(server.url.replace("/cat.png", "/a%2Fb/./ü|c?sig=%2b+x'#part"), LIMIT)
    first, second = (request.decode().lower() for request in server.requests)
    assert first.startswith("get /a%2fb/./%c3%bc|c?sig=%2b+x' http/1.1\r\n")
    assert f"\r\nhost: cat.example:{server.port}\r\n" in first
    assert "\r\naccept-encoding: identity\r\n" in first
    assert not {"cookie:", "authorization:", "referer:"} & {line.split(" ")[0] for line in second.splitlines()}


async def test_an_address_in_ipv6_is_connected_to() -> None:
    """A name with an IPv6 address, and such an address itself."""
    try:
        running = image_server(reply(PNG), "::1")
        server = running.__enter__()
    except OSError:
        pytest.skip("no IPv6 here")
    try:
        async with fetcher(server, at="::1") as made:
            assert (await made.fetch(server.url, LIMIT)).data == PNG
        allowed = ImageFetcher(hosts=[f"[::1]:{server.port}"], resolver=FakeResolver())
        assert (await allowed.fetch(f"http://[0:0::1]:{server.port}/x", LIMIT)).data == PNG
        await allowed.aclose()
    finally:
        server.close()


async def test_the_next_address_of_a_host_is_tried(server: ImageServer) -> None:
    """The first may lead nowhere, as IPv6 does in many networks."""
    async with fetcher(server) as made:
        made._resolver = FakeResolver(cat_example=[["127.0.0.9", "127.0.0.1"]])
        assert (await made.fetch(server.url, LIMIT)).data == PNG


async def test_no_proxy_of_the_environment_is_used(server: ImageServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy would resolve the name again."""
    with image_server(reply(PNG)) as proxy:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        async with fetcher(server) as made:
            await made.fetch(server.url, LIMIT)
        assert proxy.connections == 0


# -- where nothing is fetched from


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://127.0.0.1:{port}/", "another port"),
        ("http://127.0.0.1/", "no public address"),
        ("http://[::1]/", "no public address"),
        ("http://[::ffff:127.0.0.1]/", "no public address"),
        ("http://[64:ff9b::7f00:1]/", "no public address"),
        ("http://169.254.169.254/latest/meta-data/", "no public address"),
        ("http://10.0.0.1/", "no public address"),
        ("http://private.example/", "no public address"),
        ("http://half.example/", "no public address"),
        ("http://mapped.example/", "no public address"),
        ("http://scoped.example/", "no public address"),
        ("http://empty.example/", "no public address"),
        ("http://unknown.example/", "no public address"),
        ("http://private.example:{port}/", "another port"),
        ("http://2130706433:{port}/", "usual form"),
        ("http://0x7f.1/", "usual form"),
        ("http://127.1:{port}/", "usual form"),
        ("http://cat.example:{port}@127.0.0.1/", "plain host name"),
        ("http://127.0.0.1:{port}\\@cat.example/", "backslash"),
        ("file:///etc/passwd", "neither http nor https"),
        ("http://cat.example:{port}/ x", "whitespace"),
    ],
)
async def test_addresses_inside_are_refused(server: ImageServer, url: str, words: str) -> None:
    """Nobody is connected to; a name that nobody knows and one of a private address look alike."""
    known: dict[str, list[list[str]]] = {
        "private_example": [["127.0.0.1"]],
        "half_example": [[PUBLIC, "127.0.0.1"]],
        "mapped_example": [["::ffff:127.0.0.1"]],
        "scoped_example": [["fe80::1%eth0"]],
        "empty_example": [[]],
    }
    async with fetcher(server, known=known) as made:
        assert words in await refusal(made, url.format(port=server.port))
    assert server.connections == 0


async def test_a_name_of_odd_letters_is_no_failure_of_ours() -> None:
    """A resolver that cannot spell a name knows no address of it."""

    class Picky:
        async def resolve(self, host: str, port: int) -> list[str]:
            raise UnicodeError(host)

    made = ImageFetcher(resolver=Picky())
    assert "no public address" in await refusal(made, "http://odd.example/")
    await made.aclose()


async def test_a_second_answer_of_the_resolver_is_not_followed() -> None:
    """DNS rebinding: the address that was judged is the one that is connected to, and each redirect is judged anew."""
    asked: list[tuple[str, str]] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append((request.url.host, request.headers["host"]))
        assert request.extensions["sni_hostname"] == "rebinding.example"
        return httpx.Response(302, headers={"location": "/again"})

    resolver = FakeResolver(rebinding_example=[[PUBLIC], ["127.0.0.1"]])
    made = ImageFetcher(resolver=resolver, transport=httpx.MockTransport(answer))
    assert await refusal(made, "http://rebinding.example/") == "is redirected to one that may not be fetched"
    assert asked == [(PUBLIC, "rebinding.example")]
    assert resolver.asked == ["rebinding.example"] * 2


# -- redirects


async def test_redirects_are_followed(server: ImageServer) -> None:
    """Three of them, whole, relative, and to the same page with another query."""

    def answer(connection: socket.socket, request: bytes) -> None:
        path = request.split(b" ")[1].decode()
        steps = {"/cat.png": f"//cat.example:{server.port}/a/b", "/a/b": "../c?d", "/c?d": "?e"}
        (redirect(steps[path]) if path in steps else reply(PNG))(connection, request)

    server.answer = answer
    async with fetcher(server) as made:
        assert (await made.fetch(server.url, LIMIT)).data == PNG
    assert [request.split(b" ")[1] for request in server.requests] == [b"/cat.png", b"/a/b", b"/c?d", b"/c?e"]


async def test_a_loop_of_redirects_ends(server: ImageServer) -> None:
    """After three of them."""
    server.answer = redirect("/cat.png")
    async with fetcher(server) as made:
        assert await refusal(made, server.url) == "is redirected more than 3 times"
    assert len(server.requests) == 4


@pytest.mark.parametrize(
    "location",
    [
        "http://127.0.0.1:{port}/",
        "http://127.0.0.1/",
        "http://localhost:{port}/",
        "//169.254.169.254/latest",
        "file:///etc/passwd",
        "gopher://127.0.0.1:6379/_x",
        "http://2130706433:{port}/",
        "http://private.example/",
        "http://user@cat.example:{port}/",
        "\\\\127.0.0.1:{port}\\",
    ],
)
async def test_redirects_inside_are_refused(server: ImageServer, location: str) -> None:
    """Whatever it leads to that may not be fetched: nobody is connected to, and the answer is one and the same."""
    with image_server(reply(PNG)) as inside:
        server.answer = redirect(location.format(port=inside.port))
        async with fetcher(server, known={"private_example": [["10.0.0.1"]]}) as made:
            assert await refusal(made, server.url) == "is redirected to one that may not be fetched"
        assert inside.connections == 0


async def test_a_redirect_to_nowhere_is_an_error(server: ImageServer) -> None:
    """One without a Location is a status like others."""
    server.answer = reply(b"secret", "302 Found")
    async with fetcher(server) as made:
        assert await refusal(made, server.url) == "was answered with the status 302"


# -- TLS


async def test_a_certificate_for_the_name_is_good() -> None:
    """Although an address is connected to, the certificate is for the name."""
    with image_server(reply(PNG), tls=server_tls()) as server:
        async with fetcher(server) as made:
            assert (await made.fetch(server.url, LIMIT)).data == PNG


async def test_a_certificate_for_another_name_is_refused() -> None:
    """Nobody answers for dog.example with the certificate of cat.example."""
    with image_server(reply(b"secret"), tls=server_tls()) as server:
        resolver = FakeResolver(dog_example=[["127.0.0.1"]])
        hosts = [f"dog.example:{server.port}", f"127.0.0.1:{server.port}"]
        made = ImageFetcher(hosts=hosts, resolver=resolver, transport=plain_transport(client_tls()))
        for host in ("dog.example", "127.0.0.1"):
            assert await refusal(made, f"https://{host}:{server.port}/") == "could not be reached"
        assert server.requests == []
        await made.aclose()


async def test_a_certificate_of_an_unknown_authority_is_refused() -> None:
    """Without further settings the usual authorities are trusted, and no others."""
    with image_server(reply(b"secret"), tls=server_tls()) as server:
        resolver = FakeResolver(cat_example=[["127.0.0.1"]])
        made = ImageFetcher(hosts=[f"cat.example:{server.port}"], resolver=resolver)
        assert await refusal(made, server.url) == "could not be reached"
        assert server.requests == []
        await made.aclose()


# -- answers that are none


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (reply(b"<html>secret</html>", "200 OK", "Content-Type: image/png"), "no image of a known kind"),
        (reply(b"secret" * 100, "200 OK", "Content-Type: image/png"), "no image of a known kind"),
        (reply(b"BM: a secret that begins like a bitmap, but is none at all"), "no image of a known kind"),
        (reply(b"<svg xmlns='http://www.w3.org/2000/svg'/>"), "no image of a known kind"),
        (reply(b""), "no image of a known kind"),
        (reply(b"secret", "404 Not Found"), "the status 404"),
        (reply(b"secret", "500 Oops"), "the status 500"),
        (reply(PNG, "206 Partial Content"), "the status 206"),
        (reply(gzip.compress(bytes(50_000_000)), "200 OK", "Content-Encoding: gzip"), "packed form"),
        (reply(gzip.compress(PNG), "200 OK", "Content-Encoding: gzip, gzip"), "packed form"),
        (reply(PNG, length=10**9), "more than 100000 bytes"),
        (reply(PNG + bytes(LIMIT)), "more than 100000 bytes"),
        (reply(PNG, length=len(PNG) + 5), "incompletely"),
        (reply(PNG, "200 OK", "Transfer-Encoding: chunked"), "incompletely, or"),
        (lambda connection, _: connection.sendall(b"secret\r\n\r\n"), "could not be reached"),
        (lambda connection, _: connection.sendall(b"HTTP/1.1 200 OK\r\nX: " + b"x" * 200_000), "could not be reached"),
        (lambda connection, _: connection.close(), "could not be reached"),
    ],
)
async def test_what_is_no_image_is_refused(server: ImageServer, answer: Answer, words: str) -> None:
    """And nothing of it is repeated."""
    server.answer = answer
    async with fetcher(server) as made:
        assert words in await refusal(made, server.url)


async def test_nobody_there() -> None:
    """A server that does not listen cannot be reached."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        made = ImageFetcher(hosts=[f"127.0.0.1:{port}"])
        assert await refusal(made, f"http://127.0.0.1:{port}/") == "could not be reached"
        await made.aclose()


@pytest.mark.parametrize("beginning", [PNG, b"<html>"])
async def test_a_body_without_end_is_left(server: ImageServer, beginning: bytes) -> None:
    """At the limit, or at once if it is no image."""
    sent = 0

    def answer(connection: socket.socket, _request: bytes) -> None:
        nonlocal sent
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n" + beginning)
        while True:
            sent += connection.send(bytes(10_000))

    server.answer = answer
    async with fetcher(server) as made:
        words = await refusal(made, server.url)
    assert ("more than 100000 bytes" if beginning == PNG else "no image") in words
    assert server.left.wait(5)
    assert sent < 20_000_000  # what fits into the buffers of the two sockets


@pytest.mark.parametrize("pieces", [[b"HTTP/1.1 200 OK\r\n", b"X: y\r\n"], [b"HTTP/1.1 200 OK\r\n\r\n" + PNG, b"x"]])
async def test_a_slow_answer_is_left(server: ImageServer, pieces: list[bytes]) -> None:
    """A server that always sends a little more is left when the time is over."""

    def answer(connection: socket.socket, _request: bytes) -> None:
        connection.sendall(pieces[0])
        while not server.left.wait(0.02):
            connection.sendall(pieces[1])

    server.answer = answer
    began = time.monotonic()
    async with fetcher(server, timeout_s=0.4) as made:
        assert await refusal(made, server.url) == "took longer than 400 ms (setting image_fetch_timeout_ms)"
    assert 0.3 < time.monotonic() - began < 3
    assert server.left.wait(5)


async def test_a_resolver_that_hangs_is_left() -> None:
    """The time limit is for everything."""

    class Hanging:
        async def resolve(self, host: str, port: int) -> list[str]:
            await anyio.sleep_forever()
            raise AssertionError

    made = ImageFetcher(timeout_s=0.1, resolver=Hanging())
    assert "took longer than 100 ms" in await refusal(made, "http://slow.example/")
    await made.aclose()


async def test_a_fetch_that_nobody_waits_for_ends(server: ImageServer) -> None:
    """When the client goes, the connection is closed."""
    arrived = threading.Event()

    def answer(connection: socket.socket, _request: bytes) -> None:
        arrived.set()
        connection.recv(1)

    server.answer = answer
    async with fetcher(server) as made, anyio.create_task_group() as group:
        group.start_soon(made.fetch, server.url, LIMIT)
        assert await anyio.to_thread.run_sync(arrived.wait, 5)
        group.cancel_scope.cancel()
    assert server.left.wait(5)


# -- many at once


async def test_fetches_take_turns(server: ImageServer) -> None:
    """No more than 16 at the same time; the others follow."""
    guard, at_once, most = threading.Lock(), 0, 0
    full = threading.Event()

    def answer(connection: socket.socket, request: bytes) -> None:
        nonlocal at_once, most
        with guard:
            at_once += 1
            most = max(most, at_once)
            if at_once == MAX_AT_ONCE:
                full.set()
        full.wait(5)
        with guard:
            at_once -= 1
        reply(PNG)(connection, request)

    server.answer = answer
    async with fetcher(server) as made, anyio.create_task_group() as group:
        for _ in range(MAX_AT_ONCE + 8):
            group.start_soon(made.fetch, server.url, LIMIT)
    assert most == MAX_AT_ONCE
    assert len(server.requests) == MAX_AT_ONCE + 8


async def test_who_gets_no_turn_may_come_again(server: ImageServer) -> None:
    """When all turns are taken for longer than one fetch may last, the answer is 429, which SDKs try again."""
    served = threading.Semaphore(0)
    release = threading.Event()

    def answer(connection: socket.socket, _request: bytes) -> None:
        served.release()
        release.wait(10)

    server.answer = answer
    busy = ImageFetcher(
        hosts=[f"cat.example:{server.port}"], timeout_s=1, resolver=FakeResolver(cat_example=[["127.0.0.1"]])
    )
    async with anyio.create_task_group() as group:
        for _ in range(MAX_AT_ONCE):
            group.start_soon(_left_alone, busy, server.url)
        for _ in range(MAX_AT_ONCE):
            assert await anyio.to_thread.run_sync(lambda: served.acquire(timeout=5))
        busy._timeout_s = 0.05
        with pytest.raises(TooManyRequests) as caught:
            await busy.fetch(server.url, LIMIT)
        group.cancel_scope.cancel()
    release.set()
    assert caught.value.headers() == {"retry-after": "5"}
    await busy.aclose()


async def _left_alone(made: ImageFetcher, url: str) -> None:
    with pytest.raises(NotFetchable):
        await made.fetch(url, LIMIT)


async def test_the_machines_resolver() -> None:
    """The name of this machine leads to itself; a name that nobody has is an ``OSError``."""
    resolver = SystemResolver()
    assert set(await resolver.resolve("localhost", 80)) & {"127.0.0.1", "::1"}
    with pytest.raises(OSError):  # noqa: PT011 - the words are the C library's
        await resolver.resolve("name.invalid", 80)
