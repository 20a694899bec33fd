"""Streams: every byte as the engine wrote it, an end that shows whether the answer is whole, and clients that leave."""

from __future__ import annotations

import itertools
import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from harness import (
    CHAT,
    Rolecall,
    Upstream,
    events,
    eventually,
    fake_entry,
    http_request,
    new_agent,
    prompt,
    read_to_end,
    rest_of,
    text_of,
    unchunked,
    upstream,
    upstream_entry,
    words,
)

USAGE = {"prompt_tokens": 4, "completion_tokens": 3, "total_tokens": 7}


def event(delta: dict[str, Any] | None, finish: str | None = None, **more: Any) -> bytes:
    """Return one chunk of a chat stream."""
    choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": finish}]
    return b"data: " + json.dumps({"id": "x", "choices": choices, **more}, ensure_ascii=False).encode() + b"\n\n"


BEGIN = event({"role": "assistant", "content": None}) + event({"content": "é漢🙂"})
FINISH = event({}, "stop")
USAGE_CHUNK = event(None, usage=USAGE)
DONE = b"data: [DONE]\n\n"
COMMENT = b": ping\n\n"
WHOLE = BEGIN + COMMENT + event({"content": "\u2028 b"}) + FINISH
LONG = b"".join(event({"content": "x" * 1000}) for _ in range(3000)) + FINISH + DONE

SCRIPTS: dict[str, bytes] = {
    "plain": WHOLE + USAGE_CHUNK + DONE,
    "crlf": (WHOLE + USAGE_CHUNK + DONE).replace(b"\n", b"\r\n"),
    "usage-with-choices": BEGIN + event({}, "stop", usage=USAGE) + DONE,
    "usage-null": event({"content": "a"}, usage=None) + FINISH + DONE,
    "no-done": WHOLE,
    "no-blank-line": WHOLE + b"data: [DONE]",
    "unfinished": BEGIN,
    "empty": b"",
    "not-json": BEGIN + b"data: {rubbish\n\n" + FINISH + DONE,
    "other-fields": b"event: x\nother: 1\n" + WHOLE + DONE,
    "error": BEGIN + b'data: {"error":{"message":"kaputt","code":500}}\n\n' + DONE,
    "abort": BEGIN + event({}, "abort") + DONE,
    "long": LONG,
}


def chunked(data: bytes) -> bytes:
    """Return data as one chunk."""
    return b"%x\r\n%s\r\n" % (len(data), data)


def play(connection: socket.socket, request: bytes) -> None:
    """Stream the script that the request names, in pieces of ``split`` bytes, with a proper end unless ``cut``."""
    body = json.loads(request.partition(b"\r\n\r\n")[2])
    data, split = SCRIPTS[body["messages"][-1]["content"]], body.get("split", 10**9)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    kind = body.get("type", "text/event-stream")
    connection.sendall(f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
    for at in range(0, len(data), split):
        connection.sendall(chunked(data[at : at + split]))
    if not body.get("cut"):
        connection.sendall(b"0\r\n\r\n")


@pytest.fixture(scope="module")
def scripted() -> Iterator[Upstream]:
    """Run the scripted server."""
    with upstream(play) as server:
        yield server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, scripted: Upstream) -> Iterator[Rolecall]:
    """Run one rolecall with fake engines and the scripted server."""
    entries = (
        fake_entry("plain", max_parallel=50),
        *(fake_entry(f"breaks-{number}") for number in range(4)),
        upstream_entry("scripted", scripted.base_url),
    )
    folder = tmp_path_factory.mktemp("streams")
    with Rolecall(folder, entries, settings={"stream_idle_timeout_ms": 700}) as running:
        yield running


def stream_bytes(server: Rolecall, script: str, agent: str = "", **body: Any) -> tuple[bytes, bool]:
    """Return the bytes of a scripted stream as the client gets them, and whether it was ended properly."""
    request = prompt("scripted", script, stream=True, **body)
    status, headers, content = server.exchange(http_request(request, headers={"User-Agent": agent}))
    assert (status, headers["content-type"].partition(";")[0]) == (200, "text/event-stream")
    assert headers["x-request-id"].startswith("req_")
    return unchunked(content)


WITH_USAGE: dict[str, Any] = {"stream_options": {"include_usage": True}}


@pytest.mark.parametrize("split", [1, 2, 3, 7, 64, 10**9])
@pytest.mark.parametrize("script", ["plain", "crlf"])
def test_a_stream_is_the_engines_byte_for_byte(server: Rolecall, script: str, split: int) -> None:
    """Wherever the engine's writes are cut, in a letter or in a line end, the client gets the same bytes in order."""
    assert stream_bytes(server, script, split=split, **WITH_USAGE) == (SCRIPTS[script], True)


@pytest.mark.parametrize("split", [1, 2, 3, 7, 64, 10**9])
@pytest.mark.parametrize("script", ["plain", "crlf"])
def test_the_usage_chunk_is_for_those_who_asked(server: Rolecall, scripted: Upstream, script: str, split: int) -> None:
    """The engine is always asked for usage; who did not ask gets all but that one chunk, and the log has it."""
    usage = USAGE_CHUNK.replace(b"\n", b"\r\n") if script == "crlf" else USAGE_CHUNK
    agent = new_agent()
    assert stream_bytes(server, script, agent, split=split) == (SCRIPTS[script].replace(usage, b""), True)
    assert b'"include_usage":true' in scripted.requests[-1]
    line = server.line_by(agent)
    assert (line["prompt_tokens"], line["completion_tokens"], line["finish_reason"]) == (4, 3, "stop")
    assert (line["status"], line["stream"], line["error"]) == (200, True, None)
    assert line["bytes_out"] == len(SCRIPTS[script]) - len(usage)


@pytest.mark.parametrize("options", [None, {}, {"include_usage": False}, {"include_obfuscation": False}])
def test_usage_that_was_declined_is_not_sent(server: Rolecall, options: dict[str, Any] | None) -> None:
    """Options that do not ask for usage, or are null, get none."""
    content, whole = stream_bytes(server, "plain", stream_options=options)
    assert b'"usage"' not in content
    assert whole


@pytest.mark.parametrize(
    "script", ["usage-with-choices", "usage-null", "no-done", "no-blank-line", "not-json", "other-fields", "abort"]
)
@pytest.mark.parametrize("split", [1, 10**9])
def test_unusual_streams_pass_unchanged(server: Rolecall, script: str, split: int) -> None:
    """Usage in a chunk with choices, a missing last mark, fields and lines that nobody knows: all of it passes."""
    assert stream_bytes(server, script, split=split) == (SCRIPTS[script], True)


@pytest.mark.parametrize(("script", "cut"), [("unfinished", False), ("unfinished", True), ("empty", False)])
def test_a_stream_that_stops_before_its_end_is_not_ended_properly(server: Rolecall, script: str, cut: bool) -> None:  # noqa: FBT001 - a parameter of the test
    """An answer without a finish is followed by an error event, and the connection by no terminating chunk."""
    agent = new_agent()
    content, whole = stream_bytes(server, script, agent, cut=cut)
    assert not whole
    assert content.startswith(SCRIPTS[script])
    (error,) = events(content[len(SCRIPTS[script]) :].decode())
    assert set(error["error"]) == {"message", "type", "param", "code"}
    assert error["error"]["code"] == "engine_error"
    line = server.line_by(agent)
    assert line["status"] == 200
    assert line["error"].startswith("engine_error: ")
    server.await_in_flight("scripted", 0)


def test_a_cut_inside_an_event_leaves_no_half_event(server: Rolecall) -> None:
    """What the engine left unfinished is never joined with our error event: the error is an event of its own."""
    SCRIPTS["half-event"] = BEGIN + b'data: {"id": "x", "cho'
    for options in ({}, WITH_USAGE):
        content, whole = stream_bytes(server, "half-event", cut=True, **options)
        assert not whole
        last = content.decode().rstrip("\n").rpartition("\n\n")[2]
        assert json.loads(last.removeprefix("data: "))["error"]["code"] == "engine_error"


def test_an_engines_error_event_is_put_into_openais_shape_and_logged(server: Rolecall) -> None:
    """An error within a stream comes to the client with the engine's words, which stand in the log as well."""
    agent = new_agent()
    told = b'{"error":{"message":"The engine failed (500): kaputt","type":"upstream_error",'
    told += b'"param":null,"code":"engine_error"}}'
    came = b'{"error":{"message":"kaputt","code":500}}'
    assert stream_bytes(server, "error", agent) == (SCRIPTS["error"].replace(came, told).removesuffix(DONE), False)
    assert "kaputt" in server.line_by(agent)["error"]


@pytest.mark.parametrize(
    ("number", "fault"),
    [*enumerate(["crash_after_tokens", "exit_after_tokens", "drop_after_tokens", "reset_after_tokens"])],
)
def test_an_engine_that_breaks_off_in_a_stream(server: Rolecall, number: int, fault: str) -> None:
    """A crash or a cut connection mid-stream is an error event, then the close, and a line that says so."""
    model = f"breaks-{number}"
    with server.stream(model, fake={fault: 3, "tokens": 6}) as answer:
        assert answer.status_code == 200
        rest, is_whole = rest_of(answer.iter_lines())
    assert not is_whole
    assert text_of(rest) == words(3)
    assert rest[-1]["error"]["code"] == "engine_error"
    line = server.line_of(answer)
    assert line["status"] == 200
    assert line["error"].startswith("engine_error: ")
    server.await_in_flight(model, 0)
    if fault in {"crash_after_tokens", "exit_after_tokens"}:
        server.await_state(model, "failed")
    assert server.chat(model).status_code == 200


def test_an_error_before_the_first_event_is_an_ordinary_error(server: Rolecall) -> None:
    """A streamed request that the engine refuses outright gets the status and the JSON, not a stream."""
    with server.stream("plain", fake={"error_status": 400}) as answer:
        assert answer.status_code == 400
        assert answer.headers["content-type"].startswith("application/json")
        assert json.loads(answer.read())["error"]["message"] == "fake engine error"


@pytest.mark.parametrize("fake", [{"token_delay_s": 30}, {"first_token_delay_s": 30}])
def test_a_stream_that_falls_silent_is_ended(server: Rolecall, fake: dict[str, Any]) -> None:
    """After stream_idle_timeout_ms without a byte the client gets an error event and the engine's work is cancelled."""
    server.http.post("/v1/models/plain/load")
    aborted = server.stats("plain")["aborted"]
    with server.stream("plain", fake=fake) as answer:
        rest, is_whole = rest_of(answer.iter_lines())
    assert not is_whole
    assert rest[-1]["error"]["code"] == "engine_timeout"
    eventually(lambda: server.stats("plain")["aborted"] == aborted + 1, within_s=1)
    assert server.line_of(answer)["error"].startswith("engine_timeout: ")


def test_comments_keep_a_stream_alive(server: Rolecall) -> None:
    """An engine that sends comments while it thinks is not taken for silent."""
    fake = {"first_token_delay_s": 1.2, "comment_every_s": 0.2, "tokens": 1}
    with server.stream("plain", fake=fake) as answer:
        text = "\n".join(answer.iter_lines())
    assert text_of(events(text)) == "w0"
    assert "\n: ping\n" in text
    assert ":" not in text.splitlines()


def test_tokens_pass_as_they_come(server: Rolecall) -> None:
    """No event is held back: the client has each token before the engine has written the next."""
    with server.stream("plain", fake={"tokens": 5, "token_delay_s": 0.3}) as answer:
        arrivals = [time.monotonic() for line in answer.iter_lines() if '"content":" w' in line]
    gaps = [later - earlier for earlier, later in itertools.pairwise(arrivals)]
    assert len(gaps) == 3
    assert min(gaps) > 0.15


class TestClientsThatLeave:
    """The engine notices within a second, the lease is free and the line says 499."""

    @pytest.mark.parametrize(
        ("fake", "reads"),
        [
            ({"head_delay_s": 30}, False),
            ({"first_token_delay_s": 0.65}, False),
            ({"tokens": 1000, "token_delay_s": 0.05}, True),
            ({"tokens": 100_000}, True),
        ],
        ids=["before the head", "before the first token", "mid-stream", "in a flood"],
    )
    def test_in_each_phase(self, server: Rolecall, fake: dict[str, Any], reads: bool) -> None:  # noqa: FBT001 - a parameter of the test
        """A client that closes its connection ends the engine's work, whatever has been sent."""
        server.http.post("/v1/models/plain/load")
        before, agent = server.stats("plain"), new_agent()
        body = prompt("plain", stream=True, fake=fake)
        connection = server.raw(http_request(body, headers={"User-Agent": agent}))
        eventually(lambda: server.stats("plain")["in_flight"] == 1)
        got = b""
        while b"data: " not in got and "head_delay_s" not in fake:  # what has been sent is what the client has
            got += connection.recv(65536)
        if reads:
            assert b"w2" in got + connection.recv(65536) + connection.recv(65536) + connection.recv(65536)
        connection.close()
        eventually(lambda: server.stats("plain")["aborted"] == before["aborted"] + 1, within_s=1)
        server.await_in_flight("plain", 0)
        line = server.line_by(agent)
        assert (line["status"], line["model"], line["stream"]) == (499, "plain", True)
        assert line["error"].startswith("client_gone")
        assert (line["bytes_out"] > 0) == ("head_delay_s" not in fake)

    def test_at_the_last_mark(self, server: Rolecall) -> None:
        """A client that closes as soon as it has read the last mark has its whole answer: that is no 499."""
        with upstream(linger) as slow:
            server.write_registry(*server.entries, upstream_entry("lingering", slow.base_url))
            server.http.post("/v1/admin/reload")
            agent = new_agent()
            request = http_request(prompt("lingering", stream=True), headers={"User-Agent": agent})
            with server.raw(request) as connection:
                received = b""
                while DONE not in received:
                    received += connection.recv(65536)
            line = server.line_by(agent)
        assert (line["status"], line["error"], line["finish_reason"]) == (200, None, "stop")


def linger(connection: socket.socket, _request: bytes) -> None:
    """Send a whole stream, but not the end of the HTTP answer until the other side has gone."""
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
    connection.sendall(chunked(WHOLE + DONE))
    connection.recv(1)


def test_a_client_that_leaves_after_a_large_body(server: Rolecall) -> None:
    """Of more than what is read at once; nothing of the answer has come yet."""
    server.http.post("/v1/models/plain/load")
    before = server.stats("plain")["aborted"]
    with server.raw(http_request(prompt("plain", "x" * 100_000, fake={"head_delay_s": 30}))):
        eventually(lambda: server.stats("plain")["in_flight"] == 1)
    eventually(lambda: server.stats("plain")["aborted"] == before + 1, within_s=1)


def test_a_client_that_does_not_read_stops_the_engine(server: Rolecall) -> None:
    """Back-pressure reaches the engine: a stalled client costs no memory, and gets every byte once it reads."""
    sent = threading.Event()
    size = 40_000_000
    blocks = 400

    def flood(connection: socket.socket, _request: bytes) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(blocks):
            connection.sendall(chunked(event({"content": "~" * (size // blocks)})))
        sent.set()
        connection.sendall(chunked(FINISH + DONE) + b"0\r\n\r\n")

    with upstream(flood) as flooding:
        server.write_registry(*server.entries, upstream_entry("flood", flooding.base_url))
        server.http.post("/v1/admin/reload")
        process = psutil.Process(server.process.pid)
        before = process.memory_info().rss
        with server.raw(http_request(prompt("flood", stream=True))) as connection:
            server.await_in_flight("flood", 1)
            assert not sent.wait(0.4)  # less than the server waits for a client that takes nothing
            assert server.get("/health")["status"] == "ok"
            grown_mb = (process.memory_info().rss - before) / 2**20
            answer = read_to_end(connection)
    assert grown_mb < 12
    assert answer.endswith(DONE + b"\r\n0\r\n\r\n")
    assert answer.count(b"~") == size


def test_a_long_stream_is_whole(server: Rolecall) -> None:
    """Three megabytes of small events arrive complete and in order."""
    assert stream_bytes(server, "long", split=4093) == (LONG, True)


@pytest.mark.parametrize("options", [{}, WITH_USAGE])
def test_an_event_may_be_huge(server: Rolecall, options: dict[str, Any]) -> None:
    """An event of several megabytes, larger than what is looked at, passes unchanged with what follows it."""
    SCRIPTS["huge-event"] = BEGIN + event({"content": "x" * 9_000_000}) + FINISH + DONE
    content, whole = stream_bytes(server, "huge-event", split=65_000, **options)
    assert whole
    assert content == SCRIPTS["huge-event"]


def test_the_client_may_read_slowly(server: Rolecall) -> None:
    """A client that reads a little at a time gets the same bytes."""
    with server.raw() as connection:
        connection.sendall(http_request(prompt("scripted", "long", stream=True)))
        answer = b"".join(iter(lambda: connection.recv(1000), b""))
    assert unchunked(answer.partition(b"\r\n\r\n")[2]) == (LONG, True)


def test_a_streamed_request_to_an_engine_that_does_not_stream(server: Rolecall) -> None:
    """A whole answer where a stream was asked for passes as the whole answer that it is."""
    status, _, content = server.exchange(
        http_request(prompt("scripted", "json", stream=True, type="application/json", **WITH_USAGE))
    )
    assert (status, content) == (200, SCRIPTS["json"])


SCRIPTS["json"] = b'{"choices": [{"message": {"content": "a"}, "finish_reason": "stop"}]}'


def test_other_streams_pass(server: Rolecall) -> None:
    """A stream of /v1/responses has marks of its own and no [DONE]; it passes, and ends properly."""
    SCRIPTS["responses"] = b'event: response.completed\ndata: {"type":"response.completed"}\n\n'
    body = prompt("scripted", "responses", stream=True, input="x")
    status, _, content = server.exchange(http_request(body, path="/v1/responses"))
    assert (status, unchunked(content)) == (200, (SCRIPTS["responses"], True))


def test_completions_stream_as_chat_does(server: Rolecall) -> None:
    """The older endpoint streams text, with its finish and its mark."""
    body = {"model": "plain", "prompt": "hi", "stream": True}
    with server.http.stream("POST", "/v1/completions", json=body) as answer:
        rest, is_whole = rest_of(answer.iter_lines())
    assert "".join(chunk["choices"][0]["text"] for chunk in rest[:-1]) == words(8)
    assert (rest[-1], is_whole) == ("[DONE]", True)
    assert server.http.post(CHAT, json=prompt("plain")).status_code == 200


@pytest.mark.parametrize("reason", [None, "abort"])
def test_an_answer_that_its_engine_cut_is_known_by_its_line(tmp_path: Path, reason: str | None) -> None:
    """A stream may end in ``[DONE]`` and be cut: it passes as it is, and the log says so."""
    body = b'data: {"choices":[{"index":0,"delta":{"content":"hi"},"finish_reason":%s}]}\n\ndata: [DONE]\n\n'
    data = body % json.dumps(reason).encode()

    def answer(connection: socket.socket, _request: bytes) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n" + data)

    with upstream(answer) as far, Rolecall(tmp_path, [upstream_entry("far", far.base_url)]) as server:
        with server.stream("far") as streamed:
            assert streamed.read() == data
        line = server.line_of(streamed)
    assert (line["status"], line["error"]) == (200, "engine_error: the engine ended its answer without finishing it")
