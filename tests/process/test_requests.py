"""Requests that are not streamed: what reaches the engine and the client, and what happens when one is gone."""

from __future__ import annotations

import gzip
import json
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from harness import (
    CHAT,
    Rolecall,
    Upstream,
    eventually,
    fake_entry,
    http_request,
    new_agent,
    picture,
    prompt,
    read_to_end,
    upstream,
    upstream_entry,
    words,
)
from unused_ports import unused_port

TRANSCRIPTIONS = "/v1/audio/transcriptions"
KEY = "sk-canary-51c0"
ODD_KEYS = {"KEY_LINE_END": KEY + "\r\n", "KEY_TWO_LINES": KEY + "\nx: y", "KEY_LETTERS": KEY + "-ключ"}
ODD_NAMES = ("org/model:Q4_K_M", "name_(FP8)", "with space", "ünïcode-名", "role:not-a-role")
ANSWER = json.dumps(
    {
        "id": "x",
        "choices": [{"message": {"role": "assistant", "content": "é 🙂 \u2028"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 5, "completion_tokens": 3, "completion_tokens_details": {"reasoning_tokens": 2}},
        "big": 123456789012345678901234567890,
        "float": 1.10,
    },
    indent=1,
).encode()


def reply(status: str, body: bytes, *headers: str) -> bytes:
    """Return the bytes of an HTTP answer."""
    lines = (f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers)
    return "\r\n".join((*lines, "", "")).encode() + body


JSON_TYPE = "Content-Type: application/json"
SCRIPTS: dict[str, tuple[bytes, ...]] = {
    "whole": (reply("200 OK", ANSWER, "Content-Type: application/json; charset=utf-8", "Set-Cookie: a=b"),),
    "redirect": (reply("307 Temporary Redirect", b"", "Location: http://127.0.0.1:9/v1/chat/completions"),),
    "found": (reply("302 Found", b"<a href=/>", "Location: /", "Content-Type: text/html"),),
    "garbage": (b"\x00\x01 this is no HTTP\r\n\r\n\xff",),
    "silence": (),
    "half": (reply("200 OK", ANSWER[:60], JSON_TYPE),),
    "cut": (reply("200 OK", ANSWER, JSON_TYPE)[:-10],),
    "html": (reply("200 OK", b"<html>login</html>", "Content-Type: text/html"),),
    "error": (reply("500 Internal Server Error", b'{"error":{"message":"m","type":"t","code":500}}', JSON_TYPE),),
    "text-error": (reply("500 Internal Server Error", b"Internal Server Error", "Content-Type: text/plain"),),
    "busy": (reply("429 Too Many Requests", b'{"error":{"message":"later"}}', JSON_TYPE, "Retry-After: 7"),),
    "strange-status": (reply("799 Strange", b"{}", JSON_TYPE),),
    "early-hints": (b"HTTP/1.1 103 Early Hints\r\nLink: <x>\r\n\r\n", reply("200 OK", ANSWER, JSON_TYPE)),
    "gzip": (reply("200 OK", gzip.compress(ANSWER), JSON_TYPE, "Content-Encoding: gzip"),),
    "huge-head": (reply("200 OK", ANSWER, JSON_TYPE, "X-Big: " + "x" * 2_000_000),),
}


def play(connection: socket.socket, request: bytes) -> None:
    """Answer as the script says that is named by the last message."""
    body = json.loads(request.partition(b"\r\n\r\n")[2])
    for part in SCRIPTS[body["messages"][-1]["content"]]:
        connection.sendall(part)


@pytest.fixture(scope="module")
def scripted() -> Iterator[Upstream]:
    """Run the scripted server."""
    with upstream(play) as server:
        yield server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, scripted: Upstream) -> Iterator[Rolecall]:
    """Run one rolecall with fake engines and the scripted server."""
    nobody = unused_port()
    entries = (
        fake_entry("plain", model_aliases=["nick", "team/nick:1"], role_priority={"talk": 5, "keywords": 3}),
        fake_entry("tiny-context", "--ctx-size", "64", "--parallel", "1"),
        fake_entry("served", served_model_id="engine-name", generation_defaults={"temperature": 0.5, "top_k": None}),
        fake_entry("ruled", request={"strip": ["seed"], "set": {"top_p": 0.9, "max_tokens": 2}}),
        fake_entry("embedder", "--embeddings", capabilities=["embedding"]),
        fake_entry("single-slot", max_parallel=1),
        fake_entry("slow-load", "--load-s", "0.7"),
        fake_entry("mute-ears", "--head-delay-s", "30", capabilities=["audio"]),
        fake_entry("eyes", "--mmproj", "x", capabilities=["text", "vision"]),
        *(fake_entry(name) for name in ODD_NAMES),
        upstream_entry("scripted", scripted.base_url, backend_config={"api_key_env": "SCRIPTED_KEY"}),
        upstream_entry("nobody", f"http://127.0.0.1:{nobody}"),
        *(upstream_entry(name, scripted.base_url, backend_config={"api_key_env": name}) for name in ODD_KEYS),
    )
    settings = {"backend_timeout_ms": 1500, "max_image_bytes": 3000}
    folder = tmp_path_factory.mktemp("requests")
    with Rolecall(folder, entries, settings=settings, environ={"SCRIPTED_KEY": KEY, **ODD_KEYS}) as running:
        yield running


def seen(server: Rolecall, model: str) -> Any:
    """Return the last request that the fake engine of a model got."""
    return server.stats(model)["last_request"]


@pytest.mark.parametrize("name", ["plain", "nick", "team/nick:1", "role:talk", "role:TALK "])
def test_a_model_answers_to_its_name_its_aliases_and_its_roles(server: Rolecall, name: str) -> None:
    """Name, alias and role lead to the same engine, which is asked by the name that it knows."""
    answer = server.chat(name)
    assert answer.status_code == 200
    assert answer.headers["x-rolecall-model"] == "plain"
    assert answer.json()["choices"][0]["message"]["content"] == words(8)
    assert seen(server, "plain")["body"]["model"] == "plain"


@pytest.mark.parametrize("name", ODD_NAMES)
def test_names_with_strange_characters_work(server: Rolecall, name: str) -> None:
    """Slashes, colons, brackets, spaces and letters of any script may stand in a model's name."""
    answer = server.chat(name)
    assert answer.status_code == 200
    assert server.line_of(answer)["model"] == name
    assert server.get(f"/v1/models/{name}")["id"] == name


def test_what_the_client_sends_reaches_the_engine(server: Rolecall) -> None:
    """Unknown fields, odd values and deep structures pass; only the model's name is the engine's."""
    body = prompt("plain", "é🙂", seed=7, unknown={"a": [1, 2.5, None, "x\u2028y"]}, logit_bias={"1": -100})
    assert server.http.post(CHAT, json=body).status_code == 200
    assert seen(server, "plain")["body"] == body


def test_numbers_keep_their_digits(server: Rolecall) -> None:
    """Whole numbers of 64 bits and fractions come to the engine as they were written."""
    numbers = [2**64 - 1, -(2**63), 0.1, 1e-7, 1.0]
    server.chat("plain", numbers=numbers)
    assert seen(server, "plain")["body"]["numbers"] == numbers


@pytest.mark.parametrize("depth", [100, 200, 400, 900])
def test_a_body_may_be_as_deep_as_it_can_be_read(server: Rolecall, depth: int) -> None:
    """A nested body is passed on, or refused as the client's mistake; it is never rolecall's failure."""
    deep = json.loads("[" * depth + "]" * depth)
    answer = server.chat("plain", tree=deep)
    assert answer.status_code in {200, 400}
    if answer.status_code == 200:
        assert seen(server, "plain")["body"]["tree"] == deep
    else:
        assert "nested" in answer.json()["error"]["message"]


def test_the_engine_gets_headers_of_ours(server: Rolecall) -> None:
    """The engine gets a JSON content type, no compression and our request id, and nothing of the client's secrets."""
    headers = {"authorization": f"Bearer {KEY}", "openai-organization": "o", "cookie": "c=1", "accept-encoding": "gzip"}
    answer = server.http.post(CHAT, json=prompt("plain"), headers=headers)
    sent = seen(server, "plain")["headers"]
    assert sent["content-type"] == "application/json"
    assert sent["accept-encoding"] == "identity"
    assert sent["x-request-id"] == answer.headers["x-request-id"]
    assert sent["authorization"].startswith("Bearer ")
    assert KEY not in sent["authorization"]
    assert not {"cookie", "openai-organization"} & set(sent)


def test_defaults_fill_what_a_request_leaves_out(server: Rolecall) -> None:
    """The engine's own model id and the entry's defaults are put in; what the request says itself stays."""
    server.chat("served")
    assert seen(server, "served")["body"] == {**prompt("engine-name"), "temperature": 0.5}
    server.chat("served", temperature=0)
    assert seen(server, "served")["body"]["temperature"] == 0


def test_rules_of_an_entry_have_the_last_word(server: Rolecall) -> None:
    """Fields that the entry strips do not reach the engine, fields that it sets always do."""
    answer = server.chat("ruled", seed=1, max_tokens=5)
    assert answer.json()["choices"][0]["finish_reason"] == "length"
    assert seen(server, "ruled")["body"] == {**prompt("ruled"), "top_p": 0.9, "max_tokens": 2}


def test_other_endpoints_are_forwarded(server: Rolecall) -> None:
    """Embeddings, completions and the tokenizer have the same way as chat."""
    vectors = server.http.post("/v1/embeddings", json={"model": "embedder", "input": ["a", "b"]}).json()
    assert [row["index"] for row in vectors["data"]] == [0, 1]
    text = server.http.post("/v1/completions", json={"model": "plain", "prompt": "hi"}).json()
    assert text["choices"][0]["text"] == words(8)
    tokens = server.http.post("/tokenize", json={"model": "plain", "content": "hey"}).json()
    assert tokens == {"tokens": [104, 101, 121]}


def test_the_answer_is_the_engines_byte_for_byte(server: Rolecall) -> None:
    """A whole answer passes without a changed byte, with its content type, and without the engine's other headers."""
    answer = server.chat("scripted", "whole")
    assert answer.content == ANSWER
    assert answer.headers["content-type"] == "application/json; charset=utf-8"
    assert "set-cookie" not in answer.headers
    line = server.line_of(answer)
    assert (line["prompt_tokens"], line["completion_tokens"], line["reasoning_tokens"]) == (5, 3, 2)


def test_a_compressed_answer_passes_compressed(server: Rolecall) -> None:
    """A server that compresses although it was asked not to is passed on with its encoding."""
    answer = server.chat("scripted", "gzip")
    assert answer.headers["content-encoding"] == "gzip"
    assert answer.content == ANSWER


def test_an_interim_answer_is_no_answer(server: Rolecall) -> None:
    """A 103 of the engine is passed over, the answer after it counts."""
    assert server.chat("scripted", "early-hints").content == ANSWER


def test_an_engines_error_passes(server: Rolecall) -> None:
    """An engine's own refusal comes to the client in OpenAI's shape with the engine's words, and into the log."""
    answer = server.chat("tiny-context", "x" * 100)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["type"], error["code"]) == ("invalid_request_error", "context_length_exceeded")
    assert "100" in error["message"]
    assert "64" in error["message"]
    line = server.line_of(answer)
    assert line["status"] == 400
    assert "exceeds the available context size" in line["error"]
    failed = server.chat("scripted", "error")
    assert failed.status_code == 502
    assert failed.json()["error"] == {
        "message": "The engine failed (500): m", "type": "upstream_error", "param": None, "code": "engine_error"
    }  # fmt: skip
    busy = server.chat("scripted", "busy")
    assert (busy.status_code, busy.headers["retry-after"]) == (429, "7")


@pytest.mark.parametrize(
    "script", ["redirect", "found", "garbage", "silence", "half", "cut", "html", "strange-status", "huge-head"]
)
def test_rubbish_from_an_engine_is_a_502(server: Rolecall, scripted: Upstream, script: str) -> None:
    """What is no answer becomes a 502 in OpenAI's shape, once; nothing is followed and the lease is free again."""
    before = len(scripted.requests)
    answer = server.chat("scripted", script)
    assert answer.status_code == 502
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] == "engine_error"
    assert len(scripted.requests) == before + 1
    line = server.line_of(answer)
    assert line["status"] == 502
    assert line["error"].startswith("engine_error: ")
    assert server.row("scripted")["in_flight"] == 0


def test_an_error_in_plain_text_becomes_one_in_json(server: Rolecall) -> None:
    """An engine that fails without JSON is answered for in OpenAI's shape, quoting it."""
    answer = server.chat("scripted", "text-error")
    assert answer.status_code == 502
    assert "Internal Server Error" in answer.json()["error"]["message"]


def test_a_key_goes_to_its_server_and_nowhere_else(server: Rolecall, scripted: Upstream) -> None:
    """The key of an upstream comes from the environment variable that its entry names, and is shown nowhere."""
    server.chat("scripted", "whole")
    assert f"authorization: bearer {KEY}".encode() in scripted.requests[-1].lower().replace(
        KEY.lower().encode(), KEY.encode()
    )
    shown = [server.http.get(path).text for path in ("/v1/config/proxy", "/v1/models", "/v1/models/health", "/health")]
    assert not [text for text in (*shown, server.words(), server.log_path.read_text()) if KEY in text]


@pytest.mark.parametrize(("name", "status"), [("KEY_LINE_END", 200), ("KEY_TWO_LINES", 502), ("KEY_LETTERS", 502)])
def test_a_key_that_is_no_header_is_not_shown_either(server: Rolecall, name: str, status: int) -> None:
    """A line end behind a key does no harm; a key that no header can hold is a 502 that does not repeat it."""
    answer = server.chat(name, "whole")
    assert answer.status_code == status
    server.line_of(answer)
    shown = (answer.text, server.words(), server.log_path.read_text())
    assert not [text for text in shown if "canary" in text]


def test_a_server_that_is_not_there_is_a_502(server: Rolecall) -> None:
    """The client is told which model's it is and why, whoever runs rolecall its address; not again with each try."""
    answers = [server.chat("nobody") for _ in range(3)]
    assert {answer.status_code for answer in answers} == {502}
    message = answers[0].json()["error"]["message"]
    assert message == "The engine of 'nobody' cannot be reached: Connection refused."
    told = [line for line in server.words().splitlines() if "the engine of 'nobody' at http://127.0.0.1:" in line]
    assert [line.endswith("/v1 cannot be reached: Connection refused.") for line in told] == [True]


@pytest.mark.parametrize("fake", [{"head_delay_s": 30}, {"first_token_delay_s": 30}])
def test_an_engine_that_hangs_is_given_up(server: Rolecall, fake: dict[str, Any]) -> None:
    """Without a byte for backend_timeout_ms the answer is 504, and the engine's work is cancelled."""
    server.http.post("/v1/models/plain/load")
    aborted = server.stats("plain")["aborted"]
    started = time.monotonic()
    answer = server.chat("plain", fake=fake)
    assert answer.status_code == 504
    assert answer.json()["error"]["code"] == "engine_timeout"
    assert 1.4 < time.monotonic() - started < 4
    eventually(lambda: server.stats("plain")["aborted"] == aborted + 1, within_s=1)
    assert server.line_of(answer)["status"] == 504


def in_two_pieces(server: Rolecall, request: bytes) -> socket.socket:
    """Send head and 300 bytes of the body, and the rest when those were read: more than uvicorn buffers."""
    first = request.index(b"\r\n\r\n") + 300
    connection = server.raw(request[:first])
    time.sleep(0.1)  # else it may come in one part, which is another case
    connection.sendall(request[first:])
    return connection


class TestClientsThatLeave:
    """In each phase the engine notices within a second, the lease is free and the line says 499."""

    def leave(self, server: Rolecall, connection: socket.socket, model: str, agent: str) -> None:
        """Close the connection and see what comes of it."""
        before = server.stats(model)
        connection.close()
        eventually(lambda: server.stats(model)["aborted"] == before["aborted"] + 1, within_s=1)
        server.await_in_flight(model, 0)
        line = server.line_by(agent)
        assert (line["status"], line["model"]) == (499, model)
        assert line["error"].startswith("client_gone")
        assert line["bytes_out"] == 0

    @pytest.mark.parametrize("fake", [{"head_delay_s": 30}, {"tokens": 1000, "token_delay_s": 0.2}])
    def test_while_the_engine_works(self, server: Rolecall, fake: dict[str, Any]) -> None:
        """A client that leaves before the engine has answered ends the engine's work."""
        server.http.post("/v1/models/plain/load")
        agent = new_agent()
        connection = server.raw(http_request(prompt("plain", fake=fake), headers={"User-Agent": agent}))
        eventually(lambda: server.stats("plain")["in_flight"] == 1)
        self.leave(server, connection, "plain", agent)

    def test_by_reset(self, server: Rolecall) -> None:
        """A connection that is reset, not closed, is noticed as well."""
        server.http.post("/v1/models/plain/load")
        agent = new_agent()
        body = prompt("plain", fake={"head_delay_s": 30})
        connection = server.raw(http_request(body, headers={"User-Agent": agent}))
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        eventually(lambda: server.stats("plain")["in_flight"] == 1)
        self.leave(server, connection, "plain", agent)

    def test_with_a_large_body_in_two_pieces(self, server: Rolecall) -> None:
        """Who sends most of a body in one go, behind its beginning, is seen to leave as well."""
        server.http.post("/v1/models/plain/load")
        agent = new_agent()
        body = prompt("plain", "x" * 100_000, fake={"head_delay_s": 30})
        connection = in_two_pieces(server, http_request(body, headers={"User-Agent": agent}))
        eventually(lambda: server.stats("plain")["in_flight"] == 1)
        self.leave(server, connection, "plain", agent)

    def test_with_a_large_upload_in_two_pieces(self, server: Rolecall) -> None:
        """Uploads come in pieces even if they have come as a whole: the client's leaving is seen all the same."""
        server.http.post("/v1/models/mute-ears/load")
        agent = new_agent()
        parts: Any = {"file": ("a.wav", b"x" * 100_000)}
        request = server.http.build_request("POST", TRANSCRIPTIONS, files=parts, data={"model": "mute-ears"})
        fields = {"User-Agent": agent, "Content-Type": request.headers["content-type"]}
        connection = in_two_pieces(server, http_request(request.read(), path=TRANSCRIPTIONS, headers=fields))
        eventually(lambda: server.stats("mute-ears")["in_flight"] == 1)
        self.leave(server, connection, "mute-ears", agent)

    def test_while_waiting_for_a_place(self, server: Rolecall) -> None:
        """A client that leaves the queue is forgotten: its request never reaches the engine."""
        server.http.post("/v1/models/single-slot/load")
        agent = new_agent()
        with server.raw(http_request(prompt("single-slot", fake={"head_delay_s": 0.7}))) as first:
            server.await_in_flight("single-slot", 1)
            second = server.raw(http_request(prompt("single-slot"), headers={"User-Agent": agent}))
            server.await_waiting(1)
            second.close()
            server.await_waiting(0)
            assert b" 200 OK" in read_to_end(first)
        assert server.stats("single-slot")["started"] == 1
        gone = server.line_by(agent)
        assert (gone["status"], gone["model"], gone["requested_model"]) == (499, None, "single-slot")

    def test_while_the_model_loads(self, server: Rolecall) -> None:
        """A client that leaves during a load is forgotten; the engine gets ready without ever seeing its request."""
        agent = new_agent()
        with server.raw(http_request(prompt("slow-load"), headers={"User-Agent": agent})):
            server.await_state("slow-load", "starting")
        line = server.line_by(agent)
        assert (line["status"], line["model"], server.get("/health")["queue"]) == (499, None, 0)
        server.await_state("slow-load", "ready")
        assert server.stats("slow-load")["started"] == 0
        assert server.row("slow-load")["in_flight"] == 0

    @pytest.mark.parametrize("part", [b"", b"{"])
    def test_while_sending_the_body(self, server: Rolecall, part: bytes) -> None:
        """A client that leaves in the middle of its own request leaves a line with 499."""
        agent = new_agent()
        head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nUser-Agent: {agent}\r\nContent-Length: 100\r\n\r\n"
        connection = server.raw(head.encode() + part)
        connection.close()
        line = server.line_by(agent)
        assert (line["status"], line["model"]) == (499, None)


def test_clients_that_leave_do_not_stop_others(server: Rolecall) -> None:
    """Twenty clients vanish in the middle of twenty others, who get their answers."""
    server.http.post("/v1/models/plain/load")
    gone = [server.raw(http_request(prompt("plain", fake={"head_delay_s": 30}))) for _ in range(20)]
    with ThreadPoolExecutor(20) as pool:
        asked = [pool.submit(server.chat, "plain") for _ in range(20)]
        for connection in gone:
            connection.close()
        assert [each.result().status_code for each in asked] == [200] * 20
    server.await_in_flight("plain", 0)
    assert server.stats("plain")["in_flight"] == 0


def test_one_connection_serves_many_requests(server: Rolecall) -> None:
    """Requests follow each other on a connection, pipelined too, and are answered in their order."""
    first = http_request(prompt("plain", "ECHO one"), headers={"Connection": "keep-alive"})
    third = http_request(prompt("plain", "ECHO three"))
    refused = http_request(b"[]", headers={"Connection": "keep-alive"})
    with server.raw(first + refused + third) as connection:
        answers = read_to_end(connection)
    places = [answers.index(part) for part in (b'"content":"one"', b"400 Bad Request", b'"content":"three"')]
    assert places == sorted(places)
    assert answers.count(b"HTTP/1.1 ") == 3


def test_a_body_may_come_in_pieces_and_chunked(server: Rolecall) -> None:
    """A request that arrives byte by byte, or with chunked encoding, is served as any other."""
    data = json.dumps(prompt("plain", "ECHO pieces")).encode()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    head += b"Content-Type: application/json\r\n"
    head += b"Transfer-Encoding: chunked\r\n\r\n"
    with server.raw() as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in head + b"".join(b"1\r\n%c\r\n" % byte for byte in data) + b"0\r\n\r\n":
            connection.sendall(bytes([byte]))
        assert b'"content":"pieces"' in read_to_end(connection)


def test_expect_100_continue_is_answered(server: Rolecall) -> None:
    """A client that asks first is told to go on, and then answered."""
    request = http_request(prompt("plain"), headers={"Expect": "100-continue"})
    head, _, body = request.partition(b"\r\n\r\n")
    with server.raw(head + b"\r\n\r\n") as connection:
        assert connection.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(body)
        assert read_to_end(connection).startswith(b"HTTP/1.1 200 OK\r\n")


def test_an_image_reaches_a_model_that_sees(server: Rolecall) -> None:
    """A request with a picture goes to a vision model, to any slot of its, else unchanged, and counts in the log."""
    content = [{"type": "text", "text": "what?"}, picture(4000)]
    body = {"model": "eyes", "messages": [{"role": "user", "content": content}]}
    answer = server.http.post(CHAT, json=body)
    assert answer.status_code == 200
    assert seen(server, "eyes")["body"] == {**body, "id_slot": -1}
    assert server.line_of(answer)["images"] == 1


def test_the_number_of_requests_at_once_is_not_limited_by_the_proxy(server: Rolecall) -> None:
    """Hundreds of clients wait side by side and are all served."""
    entry = "plain"
    with httpx.Client(base_url=server.base_url, timeout=60, trust_env=False) as client, ThreadPoolExecutor(100) as pool:
        answers = list(pool.map(lambda _: client.post(CHAT, json=prompt(entry)).status_code, range(300)))
    assert answers == [200] * 300


def test_an_answer_says_when_it_was_given(server: Rolecall) -> None:
    """RFC 9110, 6.6.1; so say answers of models, too."""
    assert server.chat("plain").headers["date"].endswith(" GMT")
