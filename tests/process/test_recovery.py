"""After something went wrong: what is given back, what goes on, what must not be carried along."""

from __future__ import annotations

import os
import resource
import signal
import socket
from functools import partial
from pathlib import Path

import psutil
import pytest

from harness import (
    Rolecall,
    eventually,
    fake_entry,
    http_request,
    is_running,
    new_agent,
    prompt,
    upstream,
    upstream_entry,
)

pytestmark = pytest.mark.long

DONE = b'data: {"choices":[{"index":0,"delta":{"content":"hi"},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'


def has_ended(pid: int) -> bool:
    return not is_running(pid)


def test_a_request_right_after_a_crash_is_served(tmp_path: Path) -> None:
    """A request that meets an engine which has just died, before anybody noticed, is sent to its successor."""
    names = [f"m{number}" for number in range(5)]
    with Rolecall(tmp_path, [fake_entry(name) for name in names]) as server:
        for name in names:
            server.chat(name)
            engine = psutil.Process(server.row(name)["pid"])
            engine.kill()
            eventually(partial(has_ended, engine.pid))
            assert server.chat(name).status_code == 200


def test_a_client_that_takes_nothing_is_given_up(tmp_path: Path) -> None:
    """It counts as gone after ``stream_idle_timeout_ms``: its model is free again, its line says why."""
    settings = {"stream_idle_timeout_ms": 700}
    with Rolecall(tmp_path, [fake_entry("m", "--tokens", "400000")], settings=settings) as server:
        agent = new_agent()
        request = http_request(prompt("m", stream=True), headers={"user-agent": agent})
        with server.raw(request):
            server.await_in_flight("m", 1)
            line = server.line_by(agent)
            server.await_in_flight("m", 0)
    assert line["status"] == 499
    assert line["error"] == "client_gone: the client took nothing of the answer for 0.7 s"


def test_a_dead_engine_holds_no_place(tmp_path: Path) -> None:
    """What was in flight on an engine that died is not counted against its successor, though a client still hangs."""
    entries = [fake_entry("m", "--tokens", "400000", vram_estimate_mb=6000), fake_entry("n", vram_estimate_mb=6000)]
    with (
        Rolecall(tmp_path, entries, profile="development") as server,
        server.raw(http_request(prompt("m", stream=True))),
    ):
        server.await_in_flight("m", 1)
        os.kill(server.row("m")["pid"], signal.SIGKILL)
        server.await_in_flight("m", 0)
        assert server.chat("m", fake={"tokens": 3}).status_code == 200
        assert server.chat("n").status_code == 200


def test_nothing_of_an_answer_goes_along_with_the_next_request(tmp_path: Path) -> None:
    """A cookie of one server is kept from the next request, to it and to its neighbours."""

    def answer(connection: socket.socket, _request: bytes) -> None:
        body = b'{"choices":[{"message":{"content":"hi"},"finish_reason":"stop"}]}'
        head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nset-cookie: a=b; Path=/\r\n"
        connection.sendall(head + b"content-length: %d\r\n\r\n" % len(body) + body)

    with upstream(answer) as far, Rolecall(tmp_path, [upstream_entry("far", far.base_url)]) as server:
        assert [server.chat("far").status_code for _ in range(2)] == [200, 200]
        assert all(b"cookie" not in request.lower() for request in far.requests)


def test_the_last_mark_ends_a_stream(tmp_path: Path) -> None:
    """An engine that keeps its connection open after ``[DONE]`` neither spoils the answer nor holds the lease."""

    def answer(connection: socket.socket, _request: bytes) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n" + DONE)
        connection.recv(1)  # until rolecall closes it

    with upstream(answer) as far, Rolecall(tmp_path, [upstream_entry("far", far.base_url)]) as server:
        with server.stream("far") as streamed:
            assert streamed.read() == DONE
        server.await_in_flight("far", 0)
        line = server.line_of(streamed)
    assert (line["status"], line["error"], line["finish_reason"]) == (200, None, "stop")


def test_a_registry_that_is_moved_away_changes_nothing(tmp_path: Path) -> None:
    """The last good registry stays in force and its engines run on; /health says what is missing until it is back."""
    with Rolecall(tmp_path, [fake_entry("m")]) as server:
        server.chat("m")
        pid = server.row("m")["pid"]
        curated = next((tmp_path).rglob("model_registry.curated.json"))
        curated.rename(curated.with_suffix(".away"))
        problem = eventually(lambda: server.get("/health")["problems"].get("registry"))
        assert "model_registry.curated.json is gone" in problem
        assert server.row("m")["pid"] == pid
        curated.with_suffix(".away").rename(curated)
        eventually(lambda: server.get("/health")["status"] == "ok")
        assert server.row("m")["pid"] == pid


@pytest.mark.parametrize(
    "part",
    [
        {"type": ["image_url"]},
        {"type": {}},
        {"type": "image_url", "image_url": 7},
        {"type": "image", "source": 7},
        7,
        None,
    ],
)
def test_odd_parts_of_a_message_are_the_engines_to_judge(tmp_path: Path, part: object) -> None:
    """Whatever stands in a message's content, rolecall itself does not fail."""
    with Rolecall(tmp_path, [fake_entry("m", capabilities=["text", "vision"])]) as server:
        body = {"model": "m", "messages": [{"role": "user", "content": [part]}], "metadata": {"prompt_id": [[["x"]]]}}
        answer = server.exchange(http_request(body))
        assert answer[0] != 500 or b"rolecall itself failed" not in answer[2]
        assert server.chat("m").status_code == 200


def test_a_body_of_too_many_values_is_refused_at_once(tmp_path: Path) -> None:
    """A body that would hold up everybody while it is read is refused unread."""
    with Rolecall(tmp_path, [fake_entry("m")]) as server:
        body = b'{"model":"m","x":[' + b"0," * 1_100_000 + b"0]}"
        status, _, answer = server.exchange(http_request(body))
        assert status == 400
        assert b"too many values" in answer


def test_a_full_disk_of_the_state_folder_is_told(tmp_path: Path) -> None:
    """An engine that ends for want of room says so in its request's error, and /health until there is room again."""
    with Rolecall(tmp_path, [fake_entry("m")], settings={"log_path": "/dev/null"}) as server:
        pid, full = server.process.pid, resource.RLIMIT_FSIZE
        soft, hard = resource.prlimit(pid, full)
        resource.prlimit(pid, full, (0, hard))  # from here on no file of it, nor of its engines, takes anything
        answered = server.chat("m")
        assert answered.status_code == 503
        log = server.state / "engine-logs" / "m.log"
        assert f"its log {log} cannot be written: File too large" in answered.json()["error"]["message"]
        problem = server.get("/health")["problems"]["state"]
        assert problem.startswith(f"which engines run cannot be written to {server.state}")
        assert problem.endswith("File too large")
        resource.prlimit(pid, full, (soft, hard))
        eventually(lambda: server.get("/health")["status"] == "ok")
        assert eventually(lambda: server.chat("m").status_code == 200)
