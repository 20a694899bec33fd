"""Connections: limits of size, number and time, and what is no request, each answered in OpenAI's shape."""

from __future__ import annotations

import contextlib
import json
import resource
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness import CHAT, Rolecall, eventually, fake_entry, http_request, new_agent, prompt, read_to_end

HEAD_S, BODY_S, RATE = 0.5, 0.5, 1000
LARGEST = 64 * 2**20
HEAD_LIMIT, HEADERS = 4096, 20
JSON = "Content-Type: application/json\r\n"
GET = b"GET /health HTTP/1.1\r\nHost: localhost\r\n"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rolecall]:
    """Run one rolecall with small limits and a loaded model."""
    settings = {
        "max_header_bytes": HEAD_LIMIT,
        "max_headers": HEADERS,
        "header_timeout_ms": int(HEAD_S * 1000),
        "body_timeout_ms": int(BODY_S * 1000),
        "min_body_bytes_per_s": RATE,
    }
    with Rolecall(tmp_path_factory.mktemp("edge"), [fake_entry("text-only")], settings=settings) as running:
        assert running.chat("text-only").status_code == 200
        yield running
        assert running.get("/health")["status"] == "ok"
        assert "Traceback" not in running.words()


def head_of(length: int | str, path: str = CHAT, agent: str = "x", more: str = "") -> bytes:
    """Return the head of a POST whose body has that length, or is sent in chunks."""
    size = f"Content-Length: {length}" if isinstance(length, int) else "Transfer-Encoding: chunked"
    return f"POST {path} HTTP/1.1\r\nHost: localhost\r\nUser-Agent: {agent}\r\n{JSON}{more}{size}\r\n\r\n".encode()


def answers(data: bytes) -> list[tuple[int, dict[str, str], bytes]]:
    """Return the answers in what a connection gave, each with a content-length."""
    found = []
    while data:
        head, _, rest = data.partition(b"\r\n\r\n")
        start, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        length = int(headers.get("content-length", 0))
        found.append((int(start.split(" ")[1]), headers, rest[:length]))
        data = rest[length:]
    return found


def answer(connection: socket.socket) -> tuple[int, dict[str, str], bytes]:
    """Return the next answer of a connection, which stays open."""
    data = b""
    while not (found := answers(data)) or len(found[0][2]) < int(found[0][1].get("content-length", 1)):
        more = connection.recv(65536)
        assert more, data
        data += more
    assert len(found) == 1
    return found[0]


def refusal(data: bytes, status: int) -> dict[str, Any]:
    """Return the error of the last answer, which ends its connection."""
    given, headers, body = answers(data)[-1]
    assert given == status, data
    assert headers["content-type"] == "application/json"
    assert headers["connection"] == "close"
    assert headers["x-request-id"].startswith("req_")
    error = json.loads(body)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return dict(error)


def said(server: Rolecall, data: bytes) -> bytes:
    """Send bytes and return all that comes until the server closes."""
    with server.raw(data) as connection:
        return read_to_end(connection)


@contextlib.contextmanager
def seconds(least: float, most: float) -> Iterator[None]:
    """See that what is within takes so long."""
    start = time.monotonic()
    yield
    assert least <= time.monotonic() - start < most


class TestHeads:
    """The head of a request is limited in size, number of headers and time."""

    def test_a_long_header_is_a_431(self, server: Rolecall) -> None:
        """One header above the limit is refused, naming limit and setting; just below it is served."""
        fits = said(server, GET + b"X: " + b"a" * (HEAD_LIMIT - 100) + b"\r\nConnection: close\r\n\r\n")
        assert answers(fits)[0][0] == 200
        error = refusal(said(server, GET + b"X: " + b"a" * HEAD_LIMIT + b"\r\n\r\n"), 431)
        assert error["code"] == "headers_too_large"
        assert f"more than {HEAD_LIMIT} bytes (setting max_header_bytes)" in error["message"]

    def test_a_long_head_in_parts_is_a_431(self, server: Rolecall) -> None:
        """What came in an earlier part counts, though that was not too long by itself."""
        half = b"".join(b"x-%d: %b\r\n" % (n, b"a" * (HEAD_LIMIT // 12)) for n in range(8))
        with server.raw(GET + half) as connection:
            time.sleep(0.05)  # else it may come in one part, which is another case
            connection.sendall(half + b"\r\n")
            refusal(read_to_end(connection), 431)

    def test_a_long_target_is_a_431(self, server: Rolecall) -> None:
        """The target counts as part of the head."""
        refusal(said(server, b"GET /" + b"a" * HEAD_LIMIT + b" HTTP/1.1\r\n"), 431)

    def test_a_header_that_never_ends_is_refused(self, server: Rolecall) -> None:
        """Who sends one header in many parts is refused at the limit, and reads the answer though it still sends."""
        with server.raw(GET + b"X: ") as connection:
            with contextlib.suppress(OSError):
                for _ in range(100):
                    connection.sendall(b"a" * 1000)
            refusal(read_to_end(connection), 431)

    def test_too_many_headers_are_a_431(self, server: Rolecall) -> None:
        """The number of headers is limited."""
        error = refusal(said(server, GET + b"".join(b"a%d: 1\r\n" % n for n in range(HEADERS)) + b"\r\n"), 431)
        assert f"more than {HEADERS} headers (setting max_headers)" in error["message"]

    @pytest.mark.parametrize("sent", [b"G", GET, b"\r\n"])
    def test_a_slow_head_is_a_408(self, server: Rolecall, sent: bytes) -> None:
        """A head that does not end within the limit is 408, which SDKs send again."""
        with seconds(HEAD_S * 0.9, HEAD_S + 1):
            error = refusal(said(server, sent), 408)
        assert (error["code"], error["type"]) == ("request_timeout", "invalid_request_error")
        assert f"within {HEAD_S:g} s (setting header_timeout_ms)" in error["message"]

    def test_a_head_that_drips_is_a_408(self, server: Rolecall) -> None:
        """The limit is one of the whole head: a byte now and then extends nothing."""
        with server.raw(GET + b"a: ") as connection, seconds(HEAD_S * 0.9, HEAD_S + 1):
            with contextlib.suppress(OSError):
                while not has_answer(connection):
                    connection.sendall(b"a")
            refusal(read_to_end(connection), 408)

    def test_empty_lines_do_not_keep_a_connection(self, server: Rolecall) -> None:
        """Empty lines before a request, which are allowed, count as its head on a used connection as well."""
        with server.raw(GET + b"\r\n") as connection:
            assert answer(connection)[0] == 200
            with contextlib.suppress(OSError):
                while not has_answer(connection):
                    connection.sendall(b"\r\n")
            refusal(read_to_end(connection), 408)

    def test_a_connection_in_stock_is_closed_without_a_word(self, server: Rolecall) -> None:
        """Nobody waits for an answer on a connection on which nothing was sent."""
        with seconds(HEAD_S * 0.9, HEAD_S + 1):
            assert said(server, b"") == b""

    def test_a_used_connection_may_wait_longer(self, server: Rolecall) -> None:
        """Between two requests the limit is that of keep-alive: the head's begins with its first byte."""
        with server.raw(GET + b"\r\n") as connection:
            assert answer(connection)[0] == 200
            connection.settimeout(HEAD_S * 2)
            with pytest.raises(TimeoutError):
                connection.recv(1)
            connection.settimeout(20)
            connection.sendall(GET + b"Connection: close\r\n\r\n")
            assert answers(read_to_end(connection))[0][0] == 200


def has_answer(connection: socket.socket) -> bool:
    """Wait a moment for an answer."""
    connection.settimeout(0.02)
    try:
        return bool(connection.recv(1, socket.MSG_PEEK)) or True
    except TimeoutError:
        return False
    finally:
        connection.settimeout(20)


class TestBodies:
    """A body has to come, at a lowest rate."""

    @pytest.mark.parametrize("head", [head_of(1000), head_of("chunked") + b"a\r\n"])
    def test_a_body_that_stops_is_a_408_with_a_line(self, server: Rolecall, head: bytes) -> None:
        """After the longest pause the answer is 408, in the log as well."""
        agent = new_agent()
        with seconds(BODY_S * 0.9, BODY_S + 1):
            error = refusal(said(server, head.replace(b"Agent: x", b"Agent: " + agent.encode()) + b'{"a":'), 408)
        assert f"stopped for {BODY_S:g} s after 5 bytes (setting body_timeout_ms)" in error["message"]
        line = server.line_by(agent)
        assert (line["status"], line["error"][:15]) == (408, "request_timeout")

    def test_a_body_that_drips_is_a_408(self, server: Rolecall) -> None:
        """No pause is too long, but on average it is too slow."""
        with server.raw(head_of(100_000)) as connection, seconds(BODY_S * 0.9, BODY_S + 1):
            with contextlib.suppress(OSError):
                while not has_answer(connection):
                    connection.sendall(b"a")
            error = refusal(read_to_end(connection), 408)
        assert f"slower than {RATE} bytes a second (setting min_body_bytes_per_s)" in error["message"]

    def test_a_slow_body_above_the_rate_is_read(self, server: Rolecall) -> None:
        """A body may take longer than the limit of a pause as long as it goes on."""
        body = json.dumps(prompt("text-only", "a" * 20_000)).encode()
        part = len(body) // 20 + 1
        start = time.monotonic()
        with server.raw(head_of(len(body), more="Connection: close\r\n")) as connection:
            for at in range(0, len(body), part):
                time.sleep(BODY_S / 10)  # the pauses are what is tested
                connection.sendall(body[at : at + part])
            assert time.monotonic() - start > BODY_S
            assert answers(read_to_end(connection))[0][0] == 200

    def test_endless_chunk_extensions_are_no_body(self, server: Rolecall) -> None:
        """What stands beside a chunk's size counts neither as a part of the body nor for its rate."""
        with server.raw(head_of("chunked") + b"5;") as connection, seconds(BODY_S * 0.9, BODY_S + 1):
            with contextlib.suppress(OSError):
                while not has_answer(connection):
                    connection.sendall(b"a" * 1000)
            refusal(read_to_end(connection), 408)

    def test_trailers_are_limited_and_no_headers(self, server: Rolecall) -> None:
        """Headers after a chunked body are dropped, and count for the limit."""
        body = json.dumps(prompt("text-only")).encode()
        chunks = b"%x\r\n%b\r\n0\r\n" % (len(body), body)
        agent = new_agent()
        head = head_of("chunked", agent=agent, more="Connection: close\r\n")
        given = said(server, head + chunks + b"X-Prompt-Id: smuggled\r\n\r\n")
        assert answers(given)[0][0] == 200
        assert server.line_by(agent)["prompt_id"] is None
        refusal(said(server, head_of("chunked") + chunks + b"X: " + b"a" * HEAD_LIMIT + b"\r\n\r\n"), 431)

    def test_a_body_after_its_answer_ends_the_connection(self, server: Rolecall) -> None:
        """A body that nobody reads is waited for no longer than another."""
        with server.raw(head_of(1000, "/nowhere") + b"a") as connection, seconds(BODY_S * 0.9, BODY_S + 1):
            given = answers(read_to_end(connection))
        assert [status for status, _, _ in given] == [404]

    def test_an_answer_that_comes_before_the_body_is_read(self, server: Rolecall) -> None:
        """The client may send its body to the end before it looks: the connection is not reset under its answer."""
        head = head_of(8 * 2**20, "/nowhere", more="Connection: close\r\n")
        with server.raw(head) as connection:
            for _ in range(8):
                connection.sendall(b"x" * 2**20)
            assert [status for status, _, _ in answers(read_to_end(connection))] == [404]

    @pytest.mark.parametrize("sent", [b"", b"{"])
    def test_a_body_that_is_called_too_large_is_a_413_at_once(self, server: Rolecall, sent: bytes) -> None:
        """Nothing more needs to come; a client that sends nothing has no longer than with any other body."""
        with server.raw(head_of(LARGEST + 1) + sent) as connection:
            with seconds(0, BODY_S * 0.8):
                assert (given := answer(connection))[:1] == (413,)
            assert (given[1]["connection"], json.loads(given[2])["error"]["code"]) == ("close", "body_too_large")
            with seconds(0, BODY_S + 1):
                assert read_to_end(connection) == b""

    @pytest.mark.parametrize("length", [LARGEST + 16 * 2**20, "chunked"])
    def test_a_client_that_sends_too_much_reads_why(self, server: Rolecall, length: int | str) -> None:
        """It may send all of its body before it looks."""
        part = b"x" * 2**20
        with server.raw(head_of(length)) as connection:
            for _ in range(LARGEST // len(part) + 16):
                connection.sendall(part if length != "chunked" else b"%x\r\n%b\r\n" % (len(part), part))
            if length == "chunked":
                connection.sendall(b"0\r\n\r\n")
            error = refusal(read_to_end(connection), 413)
        assert f"the limit is {LARGEST}" in error["message"]

    def test_a_client_that_waits_for_permission_is_not_slow(self, server: Rolecall) -> None:
        """With Expect: 100-continue the permission comes, the body after it, the answer after that."""
        body = json.dumps(prompt("text-only")).encode()
        with server.raw(head_of(len(body), more="Expect: 100-continue\r\nConnection: close\r\n")) as connection:
            assert connection.recv(65536) == b"HTTP/1.1 100 Continue\r\n\r\n"
            connection.sendall(body)
            assert answers(read_to_end(connection))[0][0] == 200


class TestMediaTypes:
    """A body is called what it is."""

    @pytest.mark.parametrize(
        "kind",
        ["", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "application/x"],
    )
    def test_what_a_web_page_may_send_without_asking_is_refused(self, server: Rolecall, kind: str) -> None:
        """The error says what was sent and what to add."""
        data = http_request(prompt("text-only"))
        given = f"Content-Type: {kind}\r\n" if kind else ""
        status, _, body = server.exchange(data.replace(JSON.encode(), given.encode()))
        error = json.loads(body)["error"]
        assert (status, error["code"]) == (415, "unsupported_media_type")
        assert (repr(kind) if kind else "is missing") in error["message"]
        assert "-H 'content-type: application/json'" in error["message"]

    @pytest.mark.parametrize(
        "kind", ["application/json", "Application/JSON;charset=UTF-8", "application/vnd.api+json ; x=y"]
    )
    def test_json_is_json(self, server: Rolecall, kind: str) -> None:
        """Case and parameters do not matter."""
        assert server.exchange(http_request(prompt("text-only"), headers={"Content-Type": kind}))[0] == 200

    @pytest.mark.parametrize("coding", ["gzip", "br", "gzip, identity", "nonsense"])
    def test_a_compressed_body_is_refused(self, server: Rolecall, coding: str) -> None:
        """A body that could unfold is not read."""
        status, _, body = server.exchange(http_request(b"\x1f\x8b", headers={"Content-Encoding": coding}))
        assert (status, coding in json.loads(body)["error"]["message"]) == (415, True)

    def test_identity_is_no_compression(self, server: Rolecall) -> None:
        """A coding that changes nothing may be named."""
        assert server.exchange(http_request(prompt("text-only"), headers={"Content-Encoding": "identity"}))[0] == 200

    def test_a_byte_order_mark_is_skipped(self, server: Rolecall) -> None:
        """Windows programs put one before their JSON."""
        body = b"\xef\xbb\xbf" + json.dumps(prompt("text-only")).encode()
        assert server.exchange(http_request(body))[0] == 200


SMUGGLED = {
    "both lengths": "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
    "both lengths, turned": "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
    "two lengths": "Content-Length: 5\r\nContent-Length: 6\r\n",
    "one length twice": "Content-Length: 5\r\nContent-Length: 5\r\n",
    "list of lengths": "Content-Length: 5, 5\r\n",
    "signed": "Content-Length: +5\r\n",
    "beyond 64 bits": "Content-Length: 99999999999999999999999\r\n",
    "gzip": "Transfer-Encoding: gzip\r\n",
    "gzip, chunked": "Transfer-Encoding: gzip, chunked\r\n",
    "identity": "Transfer-Encoding: identity\r\n",
    "almost chunked": "Transfer-Encoding: xchunked\r\n",
    "chunked twice": "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
    "space before the colon": "Content-Length : 5\r\n",
    "folded": "Transfer-Encoding:\r\n chunked\r\nContent-Length: 5\r\n",
    "folded value": "X: a\r\n b\r\nContent-Length: 5\r\n",
    "bare line feed": "X: a\nContent-Length: 5\r\n",
    "bare carriage return": "X: a\rContent-Length: 5\r\n",
    "null in a value": "X: a\0b\r\nContent-Length: 5\r\n",
    "null in a name": "X\0: ab\r\nContent-Length: 5\r\n",
    "two hosts": "Host: y\r\nContent-Length: 5\r\n",
}


@pytest.mark.parametrize("kind", SMUGGLED)
def test_a_head_that_can_be_read_in_two_ways_is_a_400(server: Rolecall, kind: str) -> None:
    """What another server could take for a different request is refused, and its connection ends."""
    data = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\n{JSON}{SMUGGLED[kind]}\r\n"
    refusal(said(server, data.encode() + b"0\r\n\r\n" + GET + b"\r\n"), 400)


CHUNKS = {
    "signed": b"-5\r\nhello\r\n0\r\n\r\n",
    "prefixed": b"0x5\r\nhello\r\n0\r\n\r\n",
    "space": b"5 \r\nhello\r\n0\r\n\r\n",
    "beyond 64 bits": b"ffffffffffffffffff\r\n",
    "longer than said": b"1\r\nhello\r\n0\r\n\r\n",
    "bare line feed": b"5;a=b\nhello\r\n0\r\n\r\n",
}


@pytest.mark.parametrize("kind", CHUNKS)
def test_wrong_chunks_are_a_400_with_a_line(server: Rolecall, kind: str) -> None:
    """A request whose body cannot be read has its answer and its line."""
    agent = new_agent()
    refusal(said(server, head_of("chunked", agent=agent) + CHUNKS[kind]), 400)
    assert server.line_by(agent)["status"] == 400


NO_HTTP = {
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 100, "use http://, not https://"),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "HTTP/1.1, not HTTP/2"),
    "HTTP/0.9": (b"GET /health\r\n\r\n", "HTTP/1.1, not HTTP/0.9"),
    "words": (b"hello\r\n\r\n", "not an HTTP request"),
    "small letters": (b"get /health HTTP/1.1\r\nHost: localhost\r\n\r\n", "not an HTTP request"),
    "bare line feeds": (b"GET /health HTTP/1.1\nHost: x\n\n", "not an HTTP request"),
    "CONNECT": (b"CONNECT evil.example:443 HTTP/1.1\r\nHost: localhost\r\n\r\n", "no proxy"),
    "no path": (b"GET http://evil.example HTTP/1.1\r\nHost: localhost\r\n\r\n", "target is not a path"),
    "a broken target": (b"GET http://[::1/ HTTP/1.1\r\nHost: localhost\r\n\r\n", "target is not a path"),
    "no host": (b"GET /health HTTP/1.1\r\n\r\n", "0 Host headers"),
    "chunks in HTTP/1.0": (b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "chunked, in HTTP/1.1"),
}


@pytest.mark.parametrize("kind", NO_HTTP)
def test_what_is_no_request_is_a_400_in_the_usual_shape(server: Rolecall, kind: str) -> None:
    """The answer says what is wrong, is JSON and has a request id; the terminal is not filled with it."""
    data, words = NO_HTTP[kind]
    assert words in refusal(said(server, data), 400)["message"]
    assert "Invalid HTTP request" not in server.words()


def test_http_1_0_is_served(server: Rolecall) -> None:
    """Without a Host header, and the connection ends with the answer."""
    status, headers, body = server.exchange(b"GET /health HTTP/1.0\r\n\r\n")
    assert (status, headers["connection"], json.loads(body)["status"]) == (200, "close", "ok")


def test_options_of_the_server_is_a_404(server: Rolecall) -> None:
    """``OPTIONS *`` asks for nothing that there is."""
    assert answers(said(server, b"OPTIONS * HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"))[0][0] == 404


@pytest.mark.parametrize("other", ["h2c", "websocket"])
@pytest.mark.parametrize("length", ["length", "chunked"])
def test_a_wish_for_another_protocol_is_ignored(server: Rolecall, other: str, length: str) -> None:
    """A POST that would like to go on in HTTP/2, as Java's client sends it, keeps its body and its connection."""
    body = json.dumps(prompt("text-only")).encode()
    data = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body) if length == "chunked" else body
    wish = f"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: {other}\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n"
    head = head_of("chunked" if length == "chunked" else len(body), more=wish)
    with server.raw(head + data) as connection:
        for _ in range(2):
            assert answer(connection)[0] == 200
            connection.sendall(head + data)
    assert "Unsupported upgrade" not in server.words()


def test_only_some_requests_may_wait_on_a_connection(server: Rolecall) -> None:
    """Of requests sent in one go the first nine are answered in order, and the connection ends with that."""
    first = http_request(prompt("text-only", fake={"token_delay_s": 0.01, "tokens": 20}), headers={"Connection": ""})
    given = answers(said(server, first + (GET + b"\r\n") * 1000))
    assert [status for status, _, _ in given] == [200] * 9
    assert b"chat.completion" in given[0][2]
    assert "connection" not in given[0][1]
    assert given[8][1]["connection"] == "close"


def test_a_client_that_leaves_with_requests_waiting_is_noticed(server: Rolecall) -> None:
    """The answer in flight ends, and those that wait are never begun."""
    agents = [new_agent(), new_agent()]
    slow = prompt("text-only", fake={"token_delay_s": 0.1, "tokens": 600})
    requests = [http_request(slow, headers={"Connection": "", "User-Agent": agent}) for agent in agents]
    before = server.stats("text-only")["started"]
    with server.raw(b"".join(requests)):
        eventually(lambda: server.stats("text-only")["in_flight"] == 1)
    eventually(lambda: server.row("text-only")["in_flight"] == 0, within_s=1)
    assert server.line_by(agents[0])["status"] == 499
    assert server.stats("text-only")["started"] == before + 1


def test_a_waiting_request_whose_body_stops_does_not_harm_the_first(server: Rolecall) -> None:
    """The first has its answer, the second its 408."""
    first = http_request(prompt("text-only", fake={"token_delay_s": 0.1, "tokens": 10}), headers={"Connection": ""})
    given = said(server, first + head_of(1000) + b"{")
    assert [status for status, _, _ in answers(given)] == [200, 408]
    refusal(given, 408)


@pytest.mark.parametrize("rubbish", [b"\0\1\2", GET + b"X: " + b"a" * HEAD_LIMIT, b"GET"])
def test_rubbish_after_a_request_does_not_get_into_its_answer(server: Rolecall, rubbish: bytes) -> None:
    """What comes while a stream is answered never breaks into it, and the client's leaving is still noticed."""
    request = http_request(prompt("text-only", stream=True, fake={"token_delay_s": 0.02, "tokens": 50}))
    with server.raw(request) as connection:
        first = connection.recv(65536)
        connection.sendall(rubbish)
        given = first + read_to_end(connection)
    assert given.count(b"HTTP/1.1") == 1
    assert given.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
    with server.raw(
        http_request(prompt("text-only", stream=True, fake={"token_delay_s": 0.1, "tokens": 600}))
    ) as connection:
        connection.recv(65536)
        connection.sendall(rubbish)
        assert server.row("text-only")["in_flight"] == 1
    eventually(lambda: server.row("text-only")["in_flight"] == 0, within_s=1)


def test_one_connection_too_many_is_a_503(tmp_path: Path) -> None:
    """The client is told so, and when to come back; once another one is closed it is served."""
    with Rolecall(tmp_path, settings={"max_connections": 3}) as server:
        server.http.close()
        with contextlib.ExitStack() as held:
            for _ in range(3):
                connection = held.enter_context(server.raw(GET + b"\r\n"))
                assert answer(connection)[0] == 200
            given = said(server, GET + b"\r\n")
            error = refusal(given, 503)
            assert (error["code"], answers(given)[0][1]["retry-after"]) == ("too_many_connections", "2")
            assert "3 connections are open already (setting max_connections, " in error["message"]
        eventually(lambda: answers(said(server, GET + b"Connection: close\r\n\r\n"))[0][0] == 200)


def test_connections_are_bounded_by_open_files_too(tmp_path: Path) -> None:
    """With 300 files there is room for a hundred connections; one more hears of it instead of being lost."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.ExitStack() as held:
        resource.setrlimit(resource.RLIMIT_NOFILE, (300, hard))
        try:
            server = held.enter_context(Rolecall(tmp_path))
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for _ in range(100):
            assert answer(held.enter_context(server.raw(GET + b"\r\n")))[0] == 200
        assert "100 connections" in refusal(said(server, GET + b"\r\n"), 503)["message"]


def test_what_is_not_let_in_has_no_line(tmp_path: Path) -> None:
    """Nobody can fill the disk with requests that are refused for their head, Host or Origin; others have a line."""
    with Rolecall(tmp_path, [fake_entry("text-only")]) as server:
        whole = http_request(prompt("text-only"))
        assert said(server, whole.replace(b"localhost", b"evil.example")).startswith(b"HTTP/1.1 421 ")
        assert said(server, whole.replace(JSON.encode(), b"")).startswith(b"HTTP/1.1 415 ")
        assert said(server, whole.replace(b"Host:", b"Origin: https://evil.example\r\nHost:")).startswith(
            b"HTTP/1.1 403 "
        )
        refusal(said(server, whole.replace(b"Host:", b"Host: x\r\nHost:")), 400)
        refusal(said(server, NO_HTTP["words"][0]), 400)
        assert server.chat("text-only").status_code == 200
        assert [line["status"] for line in server.log_lines(2)] == [415, 200]
