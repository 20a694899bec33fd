"""One line per request, on every way that a request can end."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from harness import CHAT, Rolecall, eventually, fake_entry, http_request, new_agent, picture, prompt
from rolecall.gateway.recorder import RequestLine

CANARY = "canary-9d1e"
KEYS = [each.name for each in fields(RequestLine) if each.init]


def keys(line: dict[str, Any]) -> list[str]:
    """Return the keys of a line, but for the one that the very first line of a log has, whichever test that is of."""
    return [key for key in line if key != "log_begins"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rolecall]:
    """Run one rolecall for the module."""
    entries = (
        fake_entry("m", "--mmproj", "x", capabilities=["text", "vision"], roles=["talk"]),
        fake_entry("cold", "--load-s", "0.3"),
        fake_entry("broken", "--fail-start", "no"),
        fake_entry("crashes"),
    )
    with Rolecall(tmp_path_factory.mktemp("lines"), entries, settings={"backend_timeout_ms": 400}) as running:
        running.http.post("/v1/models/m/load")
        yield running


def test_a_line_has_all_keys_in_their_order(server: Rolecall) -> None:
    """The keys are flat and always the same; a whole answer fills them. The first line has one more."""
    answer = server.chat("role:talk", "hello", fake={"tokens": 5, "token_delay_s": 0.02})
    line = server.line_of(answer)
    assert keys(line) == KEYS
    assert list(server.log_lines()[0])[-1] == "log_begins"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line["ts"])
    expected = {
        "endpoint": CHAT, "key": None, "requested_model": "role:talk", "role": "talk", "model": "m",
        "backend": "llama_cpp", "profile": "roomy", "stream": False, "status": 200, "error": None, "messages": 1,
        "images": 0, "role_selector": "highest priority that fits", "prompt_tokens": 5, "completion_tokens": 5,
        "finish_reason": "stop", "load_ms": 0, "bytes_out": len(answer.content),
    }  # fmt: skip
    assert {key: line[key] for key in expected} == expected
    assert line["client"].startswith("127.0.0.1 python-httpx/")
    assert line["bytes_in"] == len(answer.request.content)
    assert line["duration_ms"] >= 80


def test_a_stream_has_its_times(server: Rolecall) -> None:
    """Time to first token counts the first content, not the head or the role; the rate counts what follows."""
    fake = {"tokens": 11, "first_token_delay_s": 0.2, "token_delay_s": 0.02}
    with server.stream("m", fake=fake) as answer:
        answer.read()
    line = server.line_of(answer)
    assert line["stream"]
    assert 200 <= line["ttft_ms"] < 350
    assert line["duration_ms"] >= line["ttft_ms"] + 190
    writing_s = (line["duration_ms"] - line["ttft_ms"]) / 1000
    assert line["tokens_per_second"] == pytest.approx(10 / writing_s, rel=0.05)


def test_a_cold_start_is_told_apart_from_waiting(server: Rolecall) -> None:
    """The time of a load stands in load_ms, the time in the queue in queue_ms, and both in the duration."""
    line = server.line_of(server.chat("cold"))
    assert line["load_ms"] > 300
    assert line["queue_ms"] < 100
    assert line["duration_ms"] > line["load_ms"]


def in_bytes(headers: dict[str, str | bytes]) -> list[tuple[bytes, bytes]]:
    """Return headers as they are sent; texts are UTF-8."""
    return [(name.encode(), value.encode() if isinstance(value, str) else value) for name, value in headers.items()]


@pytest.mark.parametrize(
    ("body", "headers", "expected"),
    [
        (
            {"metadata": {"prompt_id": "p", "prompt_version": 3}},
            {"x-prompt-id": "h", "x-prompt-version": "9"},
            ("p", "3"),
        ),
        ({}, {"X-Prompt-Id": "h", "X-Prompt-Version": "9"}, ("h", "9")),
        ({"metadata": {"prompt_id": "p"}}, {"x-prompt-version": "9"}, ("p", "9")),
        ({"metadata": "text"}, {}, (None, None)),
        ({}, {"x-prompt-id": "größe 🌉", "x-prompt-version": "1ö".encode("latin-1")}, ("größe 🌉", "1ö")),
        ({}, {"x-prompt-id": "", "x-prompt-version": ""}, (None, None)),
        ({}, {}, (None, None)),
    ],
)
def test_prompts_are_known_by_metadata_or_headers(
    server: Rolecall, body: dict[str, Any], headers: dict[str, str | bytes], expected: tuple[str | None, str | None]
) -> None:
    """The id and version of a prompt come from the body's metadata, else from the headers: in UTF-8, else latin-1."""
    sent = {"user-agent": "Prüfer/1", **headers}
    answer = server.http.post(CHAT, json=prompt("m", **body), headers=in_bytes(sent))
    line = server.line_of(answer)
    assert line["client"].endswith(" Prüfer/1")
    assert (line["prompt_id"], line["prompt_version"]) == expected


@pytest.mark.parametrize("stream", [False, True])
def test_answers_to_prompts_are_looked_at(server: Rolecall, *, stream: bool) -> None:
    """A whole answer and a stream with a prompt id have markers in the line, and all the size of their output."""
    asked = prompt("m", stream=stream, fake={"tokens": 300})
    plain, named = (
        server.line_of(server.http.post(CHAT, json=asked, headers=headers))
        for headers in ({}, {"x-prompt-id": "caption"})
    )
    assert "markers" not in plain
    assert named["markers"] == []
    assert plain["output_bytes"] == named["output_bytes"] > 300


def test_messages_and_images_are_counted(server: Rolecall) -> None:
    """The counts are those of the request as it was sent."""
    user = {"role": "user", "content": [picture(), {"type": "text", "text": "x"}, picture()]}
    messages = [{"role": "system", "content": "s"}, user, {"role": "assistant", "content": "a"}, user]
    line = server.line_of(server.http.post(CHAT, json={"model": "m", "messages": messages}))
    assert (line["messages"], line["images"]) == (4, 4)


IMAGE = {"role": "user", "content": [picture()]}
ENDS: dict[str, tuple[dict[str, Any] | bytes, int, str]] = {
    "bad body": (b"{", 400, "invalid_request: "),
    "no model": ({}, 400, "invalid_request: "),
    "unknown model": (prompt("nobody"), 404, "model_not_found: "),
    "unknown role": (prompt("role:nothing"), 404, "model_not_found: "),
    "image for text": (prompt("cold") | {"messages": [IMAGE]}, 400, "unsupported_input: "),
    "failed start": (prompt("broken"), 503, "model_start_failed: "),
    "engine error": (prompt("m", fake={"error_status": 500}), 502, "engine_error: The engine failed"),
    "engine hangs": (prompt("m", fake={"head_delay_s": 9}), 504, "engine_timeout: "),
    "engine crashes": (prompt("crashes", fake={"crash_after_tokens": 0}), 502, "engine_error: "),
    "engine writes rubbish": (prompt("m", fake={"garbage": True}), 502, "engine_error: "),
}  # fmt: skip


@pytest.mark.parametrize("end", ENDS)
def test_every_failure_has_its_line(server: Rolecall, end: str) -> None:
    """Status and error of the line are those that the client was given."""
    body, status, error = ENDS[end]
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = server.http.post(CHAT, content=content, headers={"content-type": "application/json"})
    assert answer.status_code == status
    line = server.line_of(answer)
    asked = body.get("model") if isinstance(body, dict) else None
    assert line.pop("wanted_model", asked) == asked
    assert keys(line) == KEYS
    assert line["status"] == status
    assert line["error"].startswith(error)
    assert line["bytes_out"] == len(answer.content)
    assert line["duration_ms"] >= 0


def test_what_is_no_inference_has_no_line(server: Rolecall) -> None:
    """Looking at models, health and configuration is not logged."""
    answer = server.chat("m")
    server.line_of(answer)
    before = len(server.log_lines())
    for path in ("/health", "/v1/models", "/v1/models/m", "/v1/config/proxy"):
        server.get(path)
    server.http.post("/v1/models/m/load")
    server.line_of(server.chat("m"))
    assert len(server.log_lines()) == before + 1


def test_prompts_and_answers_stay_out_of_the_log(server: Rolecall) -> None:
    """Without log_prompts no word of a request or an answer is written anywhere."""
    with server.stream("m", f"ECHO {CANARY}") as answer:
        assert CANARY in answer.read().decode()
    server.line_of(answer)
    server.line_of(server.chat("m", f"ECHO {CANARY}"))
    server.chat("m", CANARY, fake={"crash": 1})
    for path in (server.log_path, server.terminal, *server.state.rglob("*.log")):
        assert CANARY not in path.read_text()


@pytest.mark.parametrize("streamed", [False, True])
def test_prompts_and_answers_are_written_when_they_are_wanted(tmp_path: Path, streamed: bool) -> None:  # noqa: FBT001 - a parameter of the test
    """With log_prompts the line holds messages and answer, streamed or not."""
    with Rolecall(tmp_path, [fake_entry("m")], settings={"log_prompts": True}) as server:
        answer = server.chat("m", f"ECHO {CANARY} 🙂", stream=streamed)
        line = server.line_of(answer)
    assert line["prompt"] == [{"role": "user", "content": f"ECHO {CANARY} 🙂"}]
    assert line["response"] == f"{CANARY} 🙂"


def test_a_large_picture_is_written_when_it_is_wanted(tmp_path: Path) -> None:
    """With log_prompts all of it is in the line."""
    url = "data:image/png;base64," + "QUJD" * 200_000
    messages = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]
    with Rolecall(
        tmp_path, [fake_entry("m", "--mmproj", "x", capabilities=["text", "vision"])], settings={"log_prompts": True}
    ) as server:
        answer = server.chat("m", messages=messages)
        assert answer.status_code == 200, answer.text
        line = server.line_of(answer)
    assert (line["prompt"], line["images"]) == (messages, 1)


def test_a_full_disk_disturbs_no_request(tmp_path: Path) -> None:
    """When the log cannot be written requests are answered as ever; /health says so, and so does the terminal, once."""
    with Rolecall(tmp_path, [fake_entry("m")], settings={"log_path": "/dev/full"}) as server:
        with ThreadPoolExecutor(8) as pool:
            assert {answer.status_code for answer in pool.map(lambda _: server.chat("m"), range(50))} == {200}
        health = eventually(lambda: h if (h := server.get("/health"))["status"] == "degraded" else None)
        assert "/dev/full" in health["problems"]["log"]
        assert "No space left on device" in health["problems"]["log"]
        assert server.stop() == 0
        assert server.words().count("cannot be written: No space left on device") == 1
        assert "lines are lost" in server.words()


def test_the_folder_of_the_log_is_made(tmp_path: Path) -> None:
    """A log in a folder that does not exist makes that folder."""
    where = "a/folder/that/is/new/log.jsonl"
    with Rolecall(tmp_path, [fake_entry("m")], settings={"log_path": where}) as server:
        assert server.chat("m").status_code == 200
        server.log_path = tmp_path / where
        assert len(server.log_lines(1)) == 1


def test_a_log_path_that_is_a_folder_is_shown_before_any_request(tmp_path: Path) -> None:
    """A path that cannot be a file is a problem on /health from the start, not an end."""
    with Rolecall(tmp_path, [fake_entry("m")], settings={"log_path": "."}) as server:
        eventually(lambda: "log" in server.get("/health")["problems"])
        assert server.chat("m").status_code == 200
        server.kill()  # an orderly end would give the disk five seconds to recover


def test_a_log_that_is_taken_away_is_begun_again(tmp_path: Path) -> None:
    """Moved by another program, or removed with its folder, the log goes on at its path."""
    log_path = tmp_path / "logs" / "log.jsonl"
    with Rolecall(tmp_path, [fake_entry("m")], arguments=["--log-path", str(log_path)]) as server:
        server.log_path = log_path
        server.line_of(server.chat("m"))
        log_path.rename(tmp_path / "moved.jsonl")
        server.line_of(server.chat("m"))
        shutil.rmtree(log_path.parent)
        server.line_of(server.chat("m"))
        assert len((tmp_path / "moved.jsonl").read_text().splitlines()) == 1


def test_a_rotated_log_has_every_line(tmp_path: Path) -> None:
    """Lines of many clients at once are spread over numbered files, whole, each exactly once."""
    settings = {"max_log_bytes": 8000, "log_backups": 50}
    with Rolecall(tmp_path, [fake_entry("m")], settings=settings) as server:
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda _: server.chat("m", fake={"tokens": 1}), range(120)))
        lines = server.log_lines(120)
        assert len(list(tmp_path.glob("log.jsonl.*"))) >= 5
        assert all(path.stat().st_size <= 8000 for path in tmp_path.glob("log.jsonl*"))
    assert sorted(line["request_id"] for line in lines) == sorted(a.headers["x-request-id"] for a in answers)


def test_a_client_that_leaves_in_the_middle_of_a_stream(server: Rolecall) -> None:
    """Such a line says 499, what was sent until then, and what is known of the answer."""
    agent = new_agent()
    body = prompt("m", stream=True, fake={"tokens": 1000, "token_delay_s": 0.02})
    with server.raw(http_request(body, headers={"User-Agent": agent})) as connection:
        received = b""
        while b"w3" not in received:
            received += connection.recv(65536)
    line = server.line_by(agent)
    assert keys(line) == KEYS
    assert (line["status"], line["finish_reason"], line["completion_tokens"]) == (499, None, None)
    assert line["error"] == "client_gone: the client closed its connection"
    assert line["bytes_out"] > 500
    assert line["ttft_ms"] > 0
