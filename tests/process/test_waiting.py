"""Streams that wait hear what they wait for; whole answers are not waited for without end."""

from __future__ import annotations

import contextlib
import gzip
import json
import re
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest

from harness import (
    DEADLINE_S,
    Rolecall,
    events,
    eventually,
    fake_entry,
    http_request,
    new_agent,
    prompt,
    read_to_end,
    text_of,
    unchunked,
    upstream,
    upstream_entry,
    words,
)

pytestmark = pytest.mark.long

COMMENT = re.compile(rb": (loading|waiting for|processing)[^\n]*")
ERROR_FIELDS = {"message", "type", "param", "code"}
LOAD_S = "1.3"
"""Longer than it takes until a waiting stream has its head."""

LOADING = ("loading", "1", "2", "3", "4", "5")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rolecall]:
    """Run one rolecall; each test loads models of its own."""
    entries = (
        fake_entry("single", max_parallel=1),
        fake_entry("näme:Q4 (x)", "--load-s", "3"),
        fake_entry("quick"),
        fake_entry("embedder", "--embeddings", "--load-s", LOAD_S, capabilities=["embedding"]),
        fake_entry("again", "--load-s", LOAD_S),
        fake_entry("thinks", "--load-s", "1"),
        fake_entry("left", "--load-s", "30"),
        fake_entry("dies", "--load-s", LOAD_S, "--fail-start", "no such tensor", role_priority={"doomed": 1}),
        *(fake_entry(f"m{number}", "--load-s", LOAD_S, role_priority={"r": number}) for number in range(8)),
    )
    with Rolecall(tmp_path_factory.mktemp("waiting"), entries) as running:
        yield running


def begin(server: Rolecall, model: str, agent: str = "", path: str = "", **body: Any) -> socket.socket:
    """Send a streamed chat request and return its connection."""
    request = prompt(model, stream=True, input="x", **body)
    headers = {"User-Agent": agent or new_agent()}
    return server.raw(http_request(request, headers=headers, **({"path": path} if path else {})))


def received(connection: socket.socket, until: bytes) -> bytes:
    """Return what has come once ``until`` is in it."""
    data = b""
    while until not in data:
        part = connection.recv(65536)
        assert part, data
        data += part
    return data


def head_and_content(answer: bytes) -> tuple[bytes, bytes, bool]:
    """Return head and content of a chunked answer, and whether it came to its proper end."""
    head, _, body = answer.partition(b"\r\n\r\n")
    return head, *unchunked(body)


def comments_and_rest(content: bytes) -> tuple[list[str], bytes]:
    """Return the comments with which a content begins, and what comes after them."""
    comments = []
    while COMMENT.match(content):
        comment, _, content = content.partition(b"\n\n")
        comments.append(comment.decode())
    return comments, content


def test_a_waiting_stream_has_its_head_and_hears_of_the_load(server: Rolecall) -> None:
    """Head and comments come while the model loads, byte for byte in their form; then come the engine's own bytes."""
    with begin(server, "näme:Q4 (x)") as connection:
        early = received(connection, b"\n\n\r\n")
        assert server.state_of("näme:Q4 (x)") == "starting"
        head, content, whole = head_and_content(early + read_to_end(connection))
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"\r\ncontent-type: text/event-stream\r\n" in head
    assert b"\r\nx-rolecall-model: n%C3%A4me:Q4 (x)\r\n" in head
    request_id = re.findall(rb"\r\nx-request-id: (req_\w+)", head)[0].decode()
    comments, rest = comments_and_rest(content)
    assert [re.sub(r"\d+", "#", comment) for comment in comments] == [": loading näme:Q# (x) #% eta #s"] * 2
    assert (text_of(events(rest.decode())), whole) == (words(8), True)
    assert rest.startswith(b"data: {")
    assert rest.endswith(b"data: [DONE]\n\n")
    assert [line for line in content.split(b"\n") if line.startswith(b"id") or line == b":"] == []
    line = server.line(request_id)
    assert (line["status"], line["error"], line["model"]) == (200, None, "näme:Q4 (x)")
    assert 2500 < line["load_ms"] < line["ttft_ms"] < line["duration_ms"]
    assert line["queue_ms"] < 500
    assert line["bytes_out"] == len(content)


def test_the_eta_is_learnt(server: Rolecall) -> None:
    """Once a load was seen, the first comment of the next one tells how long it will take."""
    server.http.post("/v1/models/again/load")
    server.http.post("/v1/models/again/unload")
    with begin(server, "again") as connection:
        comments, _ = comments_and_rest(head_and_content(read_to_end(connection))[1])
    (percent, eta) = (int(each) for each in re.findall(r"\d+", comments[0]))
    assert 30 <= percent <= 75
    assert eta == 1


def test_who_does_not_wait_for_a_model_gets_the_engines_own_answer(server: Rolecall) -> None:
    """A loaded model that takes its time is not waited for: a refusal stays a status, an answer stays bare."""
    server.http.post("/v1/models/quick/load")
    with server.stream("quick", fake={"error_status": 400, "head_delay_s": 1.5}) as answer:
        assert (answer.status_code, json.loads(answer.read())["error"]["message"]) == (400, "fake engine error")
    with server.stream("quick", fake={"head_delay_s": 1.5}) as answer:
        assert answer.read().startswith(b"data: ")


def test_a_stream_in_line_hears_how_many_are_ahead(server: Rolecall) -> None:
    """Behind requests that have all places of a loaded model a stream hears that it waits, and how many go first."""
    server.http.post("/v1/models/single/load")
    with contextlib.ExitStack() as stack, ThreadPoolExecutor(1) as pool:
        first = pool.submit(server.chat, "single", fake={"tokens": 2, "token_delay_s": 2})
        server.await_in_flight("single", 1)
        waiting = []
        for count in (1, 2):
            waiting.append(stack.enter_context(begin(server, "single")))
            server.await_waiting(count)
        contents = [head_and_content(read_to_end(each))[1] for each in waiting]
        assert first.result().status_code == 200
    assert [comments_and_rest(content)[0][0] for content in contents] == [
        ": waiting for single",
        ": waiting for single, 1 ahead",
    ]
    assert [text_of(events(content.decode())) for content in contents] == [words(8)] * 2


def test_comments_go_on_while_the_prompt_is_computed(server: Rolecall) -> None:
    """After the load it says that the engine has the request, until the engine's first byte."""
    with begin(server, "thinks", fake={"head_delay_s": 2.5}) as connection:
        comments, rest = comments_and_rest(head_and_content(read_to_end(connection))[1])
    assert [comment.split(" ")[1] for comment in comments] == ["loading", "processing"]
    assert text_of(events(rest.decode())) == words(8)


def test_other_endpoints_hear_comments_only_where_they_stream(server: Rolecall) -> None:
    """The other streams have comments too; an embedding is never streamed, whatever its body says."""
    with begin(server, "m0", path="/v1/responses") as connection:
        assert b"\n: loading m0 " in received(connection, b"\n\n\r\n")
    server.http.post("/v1/models/m0/unload")
    answer = server.http.post("/v1/embeddings", json={"model": "embedder", "input": "a", "stream": True})
    assert answer.headers["content-type"].startswith("application/json")
    assert answer.json()["data"][0]["object"] == "embedding"


def test_without_a_stream_nothing_comes_early(server: Rolecall) -> None:
    """A whole answer has its own status and nothing before it, however long its model loads."""
    answer = server.chat("m1", fake={"error_status": 429})
    assert (answer.status_code, answer.json()["error"]["message"]) == (429, "The engine says: fake engine error")


def test_comments_can_be_turned_off(tmp_path: Path) -> None:
    """With stream_loading_comments off a stream gets no byte before the engine answers, and every error its status."""
    settings = {"stream_loading_comments": False, "max_wait_s": 0.5}
    entries = (fake_entry("m", "--load-s", LOAD_S),)
    with Rolecall(tmp_path, entries, settings=settings) as server:
        with server.stream("m", fake={"error_status": 400}) as answer:
            assert answer.status_code == 400
            assert json.loads(answer.read())["error"]["message"] == "fake engine error"
        assert server.line_of(answer)["load_ms"] > 1000


def test_the_openai_client_reads_a_stream_that_waited(server: Rolecall) -> None:
    """OpenAI's Python client sees the chunks and nothing of the comments."""
    with openai.OpenAI(base_url=f"{server.base_url}/v1", api_key="any", max_retries=0) as client:
        chunks = client.chat.completions.create(model="m2", messages=[{"role": "user", "content": "hi"}], stream=True)
        text = [chunk.choices[0].delta.content or "" for chunk in chunks]
    assert "".join(text) == words(8)
    assert chunks.response.headers["content-type"] == "text/event-stream"
    assert server.line(chunks.response.headers["x-request-id"])["load_ms"] > 1000


def test_the_openai_client_raises_an_error_that_came_late(server: Rolecall) -> None:
    """OpenAI's Python client raises for an error event with the message and fields that are in it."""
    with openai.OpenAI(base_url=f"{server.base_url}/v1", api_key="any", max_retries=0) as client:
        messages: Any = [{"role": "user", "content": "hi"}]
        chunks = client.chat.completions.create(
            model="m3", messages=messages, stream=True, extra_body={"fake": {"error_status": 400}}
        )
        with pytest.raises(openai.APIError, match="fake engine error") as raised:
            list(chunks)
    assert isinstance(raised.value.body, dict)
    assert raised.value.body["code"] == "invalid_request"


# -- errors after the head


def late_error(server: Rolecall, connection: socket.socket, agent: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the error that ended a stream after comments alone, and the log line; the stream has no proper end."""
    head, content, whole = head_and_content(read_to_end(connection))
    comments, rest = comments_and_rest(content)
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert comments
    assert not whole
    assert rest.endswith(b"\n\n")
    (event,) = events(rest.decode())
    assert list(event) == ["error"]
    assert set(event["error"]) >= ERROR_FIELDS
    return event["error"], server.line_by(agent)


def test_a_start_that_fails_late(server: Rolecall) -> None:
    """A model that does not start ends the waiting stream with the error that would have been the answer."""
    agent = new_agent()
    with begin(server, "dies", agent) as connection:
        error, line = late_error(server, connection, agent)
    assert (error["code"], error["type"]) == ("model_start_failed", "service_unavailable_error")
    assert "no such tensor" in error["message"]
    assert (line["status"], line["stream"]) == (503, True)
    assert line["error"].startswith("model_start_failed: ")


@pytest.mark.parametrize("number", [4, 5])
def test_an_engine_that_refuses_late(server: Rolecall, number: int) -> None:
    """An engine's own error after the wait becomes an event with its words; the line has its status."""
    agent, given = new_agent(), {4: 400, 5: 500}[number]
    status, code = {400: (400, "invalid_request"), 500: (502, "engine_error")}[given]
    with begin(server, f"m{number}", agent, fake={"error_status": given}) as connection:
        error, line = late_error(server, connection, agent)
    assert "fake engine error" in error["message"]
    assert (error["code"], error["param"]) == (code, None)
    assert (line["status"], line["error"]) == (status, f"{code}: {error['message']}")
    server.await_in_flight(f"m{number}", 0)


@pytest.mark.parametrize("fault", ["garbage", "crash_after_tokens"])
def test_an_engine_that_breaks_off_late(server: Rolecall, fault: str) -> None:
    """An engine that fails before its first byte ends the stream with a 502 in the line; after it the line has 200."""
    agent = new_agent()
    server.http.post("/v1/models/m6/unload")
    with begin(server, "m6", agent, fake={fault: True if fault == "garbage" else 3}) as connection:
        _, content, whole = head_and_content(read_to_end(connection))
    comments, rest = comments_and_rest(content)
    assert comments
    assert not whole
    seen = events(rest.decode())
    assert seen[-1]["error"]["code"] == "engine_error"
    assert text_of(seen) == ("" if fault == "garbage" else words(3))
    line = server.line_by(agent)
    assert line["status"] == (502 if fault == "garbage" else 200)
    assert line["error"].startswith("engine_error: ")


def test_a_shutdown_while_a_stream_waits(tmp_path: Path) -> None:
    """Who waits when rolecall ends is told so within the stream, and the half-loaded engine is ended."""
    with Rolecall(tmp_path, [fake_entry("m", "--load-s", "30")]) as server:
        agent = new_agent()
        with begin(server, "m", agent) as connection:
            early = received(connection, b"\n\n\r\n")
            server.terminate()
            _, content, whole = head_and_content(early + read_to_end(connection))
        assert server.ended(5) == 0
        assert events(content.decode())[-1]["error"]["code"] == "shutting_down"
        assert not whole
        assert server.line_by(agent)["status"] == 503
        assert "Traceback" not in server.words()


def test_a_shutdown_while_the_prompt_is_computed(tmp_path: Path) -> None:
    """A stream that has nothing but comments when the grace is over ends with the error, and its line with 503."""
    entries = [fake_entry("m", "--load-s", LOAD_S)]
    with Rolecall(tmp_path, entries, settings={"shutdown_grace_s": 0.2}) as server:
        agent = new_agent()
        with begin(server, "m", agent, fake={"head_delay_s": 60}) as connection:
            early = received(connection, b"\n\n\r\n")
            server.await_in_flight("m", 1)
            server.terminate()
            _, content, whole = head_and_content(early + read_to_end(connection))
        assert server.ended(8) == 0
        assert events(content.decode())[-1]["error"]["code"] == "shutting_down"
        assert not whole
        assert server.line_by(agent)["status"] == 503


JSON = "application/json"
WHOLE = {
    "object": "chat.completion",
    "choices": [
        {
            "index": 0,
            "finish_reason": "tool_calls",
            "message": {"role": "assistant", "content": "a", "tool_calls": [{"id": "c", "type": "function"}]},
        }
    ],
    "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3},
}


def answers(status: int, kind: str, body: bytes, *fields: str) -> bytes:
    """Return a whole HTTP answer."""
    head = [f"HTTP/1.1 {status} X", f"Content-Type: {kind}", f"Content-Length: {len(body)}", *fields]
    return "\r\n".join([*head, "", ""]).encode() + body


SCRIPTS = {
    "whole": answers(200, JSON, json.dumps(WHOLE).encode()),
    "strange": answers(200, JSON, b'{"result": 1}'),
    "text": answers(200, "text/plain", b"hello"),
    "gzip": answers(200, JSON, gzip.compress(json.dumps(WHOLE).encode()), "Content-Encoding: gzip"),
    "old vLLM": answers(400, JSON, b'{"object":"error","message":"too long","type":"BadRequestError","code":40}'),
    "FastAPI": answers(422, JSON, b'{"detail":[{"loc":["body"],"msg":"bad"}]}'),
    "words": answers(500, JSON, b'{"error":"kaputt"}'),
    "extra": answers(503, JSON, b'{"error":{"message":"m","param":null,"hint":"h"}}'),
    "redirect": answers(302, JSON, b"{}", "Location: http://127.0.0.1:9/"),
}


LineUp = Callable[..., tuple[bytes, dict[str, Any]]]


@pytest.fixture
def line_up(tmp_path: Path) -> Iterator[LineUp]:
    """Return a function that lets a stream wait, has a script answer it, and returns its content and log line."""
    release = threading.Event()

    def play(connection: socket.socket, request: bytes) -> None:
        script = json.loads(request.partition(b"\r\n\r\n")[2])["script"]
        if script == "hold":
            release.wait(DEADLINE_S)
        connection.sendall(SCRIPTS["whole" if script == "hold" else script])

    with upstream(play) as far:
        entries = [upstream_entry("far", far.base_url, max_parallel=1)]
        with Rolecall(tmp_path, entries) as running:
            yield lambda script, path="": ask_in_line(running, release, script, path)


def ask_in_line(running: Rolecall, release: threading.Event, script: str, path: str) -> tuple[bytes, dict[str, Any]]:
    """Ask behind a request that is held until the stream has heard a comment."""
    agent = new_agent()
    with ThreadPoolExecutor(1) as pool:
        holder = pool.submit(running.chat, "far", script="hold")
        running.await_in_flight("far", 1)
        with begin(running, "far", agent, script=script, path=path) as connection:
            early = received(connection, b"\n\n\r\n")
            release.set()
            head, content, whole = head_and_content(early + read_to_end(connection))
        holder.result()
    comments, rest = comments_and_rest(content)
    assert head.startswith(b"HTTP/1.1 200 ")
    assert comments == [": waiting for far"]
    assert whole == rest.endswith(b"data: [DONE]\n\n")
    return rest, running.line_by(agent)


def test_a_whole_answer_to_a_stream_that_waited(line_up: LineUp) -> None:
    """An engine that does not stream: its answer becomes a stream of one chunk, with all that was in it."""
    rest, line = line_up("whole")
    chunk, done = events(rest.decode())
    assert done == "[DONE]"
    assert chunk["object"] == "chat.completion.chunk"
    assert chunk["usage"] == WHOLE["usage"]
    (choice,) = chunk["choices"]
    assert choice["delta"] == {
        "role": "assistant",
        "content": "a",
        "tool_calls": [{"index": 0, "id": "c", "type": "function"}],
    }
    assert choice["finish_reason"] == "tool_calls"
    assert (line["status"], line["error"], line["completion_tokens"]) == (200, None, 2)


LATE = {
    "strange": (502, "engine_error", "fits into no stream"),
    "text": (502, "engine_error", "is not JSON: hello"),
    "gzip": (502, "engine_error", "fits into no stream"),
    "old vLLM": (400, "invalid_request", "too long"),
    "FastAPI": (400, "invalid_request", "bad"),
    "words": (502, "engine_error", "kaputt"),
    "extra": (503, "engine_busy", "m"),
    "redirect": (502, "engine_error", "status 302"),
}


@pytest.mark.parametrize("script", LATE)
def test_other_answers_to_a_stream_that_waited(line_up: LineUp, script: str) -> None:
    """Whatever an engine answers is told as an error in OpenAI's shape; its own words are in it."""
    status, code, said = LATE[script]
    rest, line = line_up(script)
    (event,) = events(rest.decode())
    assert set(event["error"]) == ERROR_FIELDS
    assert event["error"]["code"] == code
    assert said in event["error"]["message"]
    assert line["status"] == status
    assert said.removesuffix(": hello") in line["error"]
    assert "hello" not in line["error"]


def test_a_whole_answer_of_another_endpoint_fits_into_no_stream(
    line_up: LineUp,
) -> None:
    """What a stream of /v1/responses would have to look like is not guessed."""
    rest, line = line_up("whole", path="/v1/responses")
    assert events(rest.decode())[0]["error"]["code"] == "engine_error"
    assert line["status"] == 502


# -- leaving, and waiting too long


def test_a_client_that_leaves_a_waiting_stream(server: Rolecall) -> None:
    """Its place in the queue is free at once, and its line says 499 without a model."""
    agent = new_agent()
    with begin(server, "left", agent) as connection:
        received(connection, b"\n\n\r\n")
        server.await_waiting(1)
    server.await_waiting(0)
    line = server.line_by(agent)
    assert (line["status"], line["model"], line["queue_ms"], line["load_ms"]) == (499, None, None, None)
    assert line["error"].startswith("client_gone: ")
    assert line["bytes_out"] > 0
    server.http.post("/v1/models/left/unload")


def test_a_client_that_leaves_while_the_prompt_is_computed(server: Rolecall) -> None:
    """After comments alone the engine's work is cancelled as ever."""
    agent = new_agent()
    server.http.post("/v1/models/m7/unload")
    with begin(server, "m7", agent, fake={"head_delay_s": 30}) as connection:
        received(connection, b"\n\n\r\n")
        server.await_in_flight("m7", 1)
        eventually(lambda: server.stats("m7")["started"] == 1)  # the engine has it, not only its lease is out
    eventually(lambda: server.stats("m7")["aborted"] == 1, within_s=1)
    server.await_in_flight("m7", 0)
    assert server.line_by(agent)["status"] == 499


def test_a_whole_answer_is_not_waited_for_without_end(tmp_path: Path) -> None:
    """After max_wait_s it is 503 with the time to come back; the model goes on loading, a stream goes on waiting."""
    entries = (fake_entry("m", "--load-s", "3.5"),)
    with Rolecall(tmp_path, entries, settings={"max_wait_s": 1.5}) as server, begin(server, "m") as connection:
        server.await_state("m", "starting")
        answer = server.chat("m")
        assert (answer.status_code, server.state_of("m")) == (503, "starting")
        error = answer.json()["error"]
        assert (error["code"], error["type"]) == ("model_loading", "service_unavailable_error")
        assert "'m' is still being loaded after 1.5 s (max_wait_s)" in error["message"]
        assert 1 <= int(answer.headers["retry-after"]) <= 120
        assert server.get("/health")["queue"] == 1
        content = head_and_content(read_to_end(connection))[1]
        assert text_of(events(content.decode())) == words(8)
        line = server.line_of(answer)
        assert (line["status"], line["model"]) == (503, None)
        assert 1400 < line["duration_ms"] < 2500
        assert server.chat("m").status_code == 200


def test_a_load_that_nobody_waits_for_any_more_goes_on(tmp_path: Path) -> None:
    """The only request for a model leaves after max_wait_s; whoever retries finds the model loaded further."""
    entries = (fake_entry("m", "--load-s", "2"),)
    with Rolecall(tmp_path, entries, settings={"max_wait_s": 0.5}) as server:
        assert server.chat("m").status_code == 503
        assert server.get("/health")["queue"] == 0
        server.await_state("m", "ready")


def test_a_place_in_line_is_not_waited_for_without_end(tmp_path: Path) -> None:
    """A busy model that has no place within max_wait_s is a 503 too."""
    entries = (fake_entry("m", max_parallel=1),)
    with Rolecall(tmp_path, entries, settings={"max_wait_s": 0.5}) as server, ThreadPoolExecutor(1) as pool:
        server.http.post("/v1/models/m/load")
        busy = pool.submit(server.chat, "m", fake={"tokens": 4, "token_delay_s": 0.5})
        server.await_in_flight("m", 1)
        answer = server.chat("m")
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
        assert "'m' has not become free" in answer.json()["error"]["message"]
        assert busy.result().status_code == 200


# -- the reason in the line


def test_the_line_tells_why_a_loaded_model_was_taken(tmp_path: Path) -> None:
    """A role that spares a swap says so in role_selector, with both priorities; a name says nothing."""
    entries = (fake_entry("good", role_priority={"tag": 80}), fake_entry("best", role_priority={"tag": 90}))
    settings = {"quality_tolerance": 15}
    with Rolecall(tmp_path, entries, profile="development", settings=settings) as server:
        named = server.chat("good")
        chosen = server.chat("role:tag")
        line = server.line_of(chosen)
        assert (line["model"], line["role"]) == ("good", "tag")
        expected = r"best 90 would need a swap of [\d.]+ s; good at 80 is loaded; tolerance 15"
        assert re.fullmatch(expected, line["role_selector"])
        assert server.line_of(named)["role_selector"] is None
