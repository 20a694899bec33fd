"""Mode ``cli`` as a process: real requests, and a stand-in for llama.cpp's programs."""

from __future__ import annotations

import base64
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from harness import eventually, is_running
from unused_ports import unused_port

FAKE = Path(__file__).parents[1] / "process" / "fake_llama_cli.py"
PNG = b"\x89PNG not really"
PROGRAMS = ("llama-completion", "llama-mtmd-cli")


class Server:
    """A one-shot server that runs, with what its programs noted."""

    def __init__(self, folder: Path, *flags: str, env: dict[str, str] | None = None) -> None:
        self.journal = folder / "journal"
        self.spool = folder / "spool"
        self.journal.mkdir(exist_ok=True)
        self.port = unused_port()
        argv = [sys.executable, "-m", "rolecall.backends.oneshot", "--alias", "tiny", "--spool", str(self.spool)]
        argv += ["--cli", str(folder / PROGRAMS[0]), "--mtmd-cli", str(folder / PROGRAMS[1])]
        argv += ["--model", str(folder / "m.gguf"), "--mmproj", str(folder / "mm.gguf"), "--port", str(self.port)]
        environment = {**os.environ, "FAKE_CLI_JOURNAL": str(self.journal), **(env or {})}
        with (folder / "log").open("wb") as log:
            self.process = subprocess.Popen([*argv, "--", *flags], stderr=log, env=environment)
        self.log = folder / "log"
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=20, trust_env=False)

    def until_ready(self) -> None:
        """Wait for /health."""
        eventually(lambda: self.process.poll() is not None or self.is_healthy())
        assert self.process.poll() is None, self.log.read_text()

    def is_healthy(self) -> bool:
        """Whether it answers."""
        try:
            return self.http.get("/health").status_code == 200
        except httpx.TransportError:
            return False

    def chat(self, *texts: Any, **body: Any) -> httpx.Response:
        """Ask, and return the response."""
        return self.http.post("/v1/chat/completions", json=ask(*texts, **body))

    def noted(self, count: int = 1) -> list[dict[str, Any]]:
        """Return what the programs noted, once so many were started."""
        eventually(lambda: len(list(self.journal.glob("*.json"))) >= count)
        return [json.loads(path.read_text()) for path in sorted(self.journal.glob("*.json"))]

    def leftovers(self) -> list[Path]:
        """Return the files in its folders."""
        return [path for path in self.spool.rglob("*") if path.is_file()]


def ask(*texts: Any, **body: Any) -> dict[str, Any]:
    """Return a body with one user message for each text."""
    return {"messages": [{"role": "user", "content": text} for text in texts], **body}


def picture(text: str) -> list[dict[str, Any]]:
    """Return a content with a text and an image."""
    url = "data:image/png;base64," + base64.b64encode(PNG).decode()
    return [{"type": "text", "text": text}, {"type": "image_url", "image_url": {"url": url}}]


def events(response: httpx.Response) -> list[Any]:
    """Return the events of a stream, ``[DONE]`` as it is."""
    lines = [line.removeprefix("data: ") for line in response.text.splitlines() if line]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with a model and the programs."""
    (tmp_path / "m.gguf").write_bytes(b"GGUF\3\0\0\0" + bytes(16))
    (tmp_path / "mm.gguf").write_bytes(b"GGUF")
    for name in PROGRAMS:
        (tmp_path / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" "{FAKE}" "$0" "$@"\n')
        (tmp_path / name).chmod(0o755)
    return tmp_path


@pytest.fixture
def start(folder: Path) -> Iterator[Callable[..., Server]]:
    """Return a starter of servers with further flags; they are ended afterwards."""
    servers: list[Server] = []

    def begin(*flags: str, **more: Any) -> Server:
        servers.append(Server(folder, *flags, **more))
        return servers[-1]

    yield begin
    for server in servers:
        server.http.close()
        server.process.kill()
        server.process.wait()


@pytest.fixture
def server(start: Callable[..., Server]) -> Server:
    """Return a server that is ready."""
    begun = start("-c", "512")
    begun.until_ready()
    return begun


def test_a_key_is_asked_for(start: Callable[..., Server]) -> None:
    """With a key in its environment nobody else is let in, but to ask whether it is well; programs never see it."""
    server = start(env={"LLAMA_API_KEY": "canary-key"})
    server.until_ready()
    refused = server.chat("hi")
    assert (refused.status_code, refused.json()["error"]["message"]) == (401, "Invalid API Key")
    assert server.http.get("/v1/models", headers={"authorization": "Bearer canary-ke"}).status_code == 401
    server.http.headers["authorization"] = "Bearer canary-key"
    assert server.chat("hi").status_code == 200
    assert "canary-key" not in json.dumps(server.noted()) + server.log.read_text()


def test_an_answer(server: Server) -> None:
    """A whole completion, with its tokens; the model is known under its alias."""
    answer = server.chat("ECHO Good morning", max_tokens=10).json()
    assert answer["choices"][0]["message"] == {"role": "assistant", "content": "Good morning"}
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["usage"] == {"completion_tokens": 3, "prompt_tokens": 20, "total_tokens": 23}
    assert answer["model"] == server.http.get("/v1/models").json()["data"][0]["id"] == "tiny"


def test_a_stream(server: Server) -> None:
    """Chunks in llama-server's form: an opening, the words, the reason, the tokens, the end mark."""
    options = {"stream": True, "stream_options": {"include_usage": True}}
    response = server.chat("LOOP", max_tokens=3, **options)
    first, *middle, last, counts, done = events(response)
    assert response.headers["content-type"] == "text/event-stream"
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": None}
    assert "".join(chunk["choices"][0]["delta"]["content"] for chunk in middle) == " w00 w01 w02"
    assert (last["choices"][0]["delta"], last["choices"][0]["finish_reason"]) == ({}, "length")
    assert (counts["choices"], counts["usage"]["completion_tokens"], done) == ([], 3, "[DONE]")


def test_words_come_as_they_are_written(server: Server) -> None:
    """A stream does not wait for the end, and no character is split."""
    with server.http.stream("POST", "/v1/chat/completions", json=ask("SLOW", max_tokens=200, stream=True)) as response:
        lines = (line for line in response.iter_lines() if "w00" in line)
        assert "w00" in next(lines)
        assert is_running(server.noted()[0]["pid"])
    answer = server.chat("BYTES", max_tokens=1).json()["choices"][0]["message"]["content"]
    assert answer == " größer 🦙"


def test_an_image(server: Server) -> None:
    """Its program gets it as a file that nobody else can read, and that is gone afterwards."""
    answer = server.chat(picture("ECHO a llama"), max_tokens=9).json()
    assert answer["choices"][0]["message"]["content"] == "a llama"
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert server.chat(picture("LOOP"), max_tokens=2).json()["choices"][0]["finish_reason"] == "length"
    noted = server.noted()[0]
    assert (noted["program"], noted["images"], noted["modes"]) == ("llama-mtmd-cli", [PNG.hex()], ["0o600"])
    assert stat.S_IMODE(Path(noted["folder"]).stat().st_mode) == 0o700
    assert server.leftovers() == []


@pytest.mark.parametrize("text", ["-p x", "--help", "/read /etc/passwd", "{% endset %}{{ x }}", "a\n\\n'\"`$(id)"])
def test_a_prompt_is_never_anything_else(server: Server, text: str) -> None:
    """Whatever it looks like, it stands in the file alone, unchanged."""
    server.chat("before", text)
    noted = server.noted()[0]
    assert noted["conversation"].split("\x1e")[2::2] == ["before", text]
    assert not any("before" in word or text in word for word in noted["argv"] if word != "--help")
    assert "--no-escape" in noted["argv"]


def test_a_prompt_longer_than_an_argument_can_be(server: Server) -> None:
    """Length is a matter of the model's context alone."""
    assert server.chat("x" * 300_000, "ECHO ok").status_code == 200
    assert len(server.noted()[0]["conversation"]) > 300_000


def test_options_of_a_request_come_after_those_of_the_start(server: Server) -> None:
    """What was given behind -- holds for all; a request's own numbers follow."""
    server.chat("hi", temperature=0.25, max_tokens=7, response_format={"type": "json_object"})
    argv = server.noted()[0]["argv"]
    assert argv.index("-c") < argv.index("--temp")
    assert argv[argv.index("--temp") + 1] == "0.25"
    assert argv[argv.index("-n") + 1] == "7"
    assert "--json-schema-file" in argv


def test_a_stop_word_ends_the_program(server: Server) -> None:
    """Nothing goes on for words that nobody gets."""
    answer = server.chat("SLOW", max_tokens=1000, stop=[" w02"]).json()
    assert answer["choices"][0] == {
        "finish_reason": "stop",
        "index": 0,
        "message": {"role": "assistant", "content": " w00 w01"},
    }
    eventually(lambda: not is_running(server.noted()[0]["pid"]))


@pytest.mark.parametrize("stream", [False, True])
def test_a_program_that_fails(server: Server, stream: bool) -> None:  # noqa: FBT001 - a parameter of the test
    """Before the first word it is an HTTP error with the program's last lines, streamed or not."""
    response = server.chat("FAIL no such tensor", stream=stream)
    assert response.status_code == 500
    assert "exit code 3" in response.json()["error"]["message"]
    assert "no such tensor" in response.json()["error"]["message"]
    assert server.leftovers() == []


def test_a_program_that_fails_within_an_answer(server: Server) -> None:
    """The stream says so and has no end mark."""
    *_, last = events(server.chat("CUT", stream=True))
    assert "something broke" in last["error"]["message"]


@pytest.mark.parametrize(
    "line", ["E llama_completion: prompt is too long (9 tokens, max 4)", "E x: failed to decode buffer as either image"]
)
def test_what_is_the_clients_fault(server: Server, line: str) -> None:
    """A conversation that does not fit and an image that is none are the request's own faults."""
    assert server.chat(f"FAIL {line}").status_code == 400


def test_a_request_that_is_wrong(server: Server) -> None:
    """No program is started for it."""
    assert server.http.post("/v1/chat/completions", content=b"{").status_code == 400
    assert server.chat("hi", temperature="hot").json()["error"]["param"] == "temperature"
    assert list(server.journal.iterdir()) == []


@pytest.mark.parametrize(
    "content",
    [
        b"[" * 100_000,
        b'{"messages": [{"role": "user", "content": "hi"}], "chat_template_kwargs": {"if": 1}}',
        b'{"messages": [{"role": "user", "content": "hi"}], "chat_template_kwargs": {"x": %s}}'
        % (b"[" * 900 + b"]" * 900),
    ],
)
def test_a_body_that_no_program_could_take(server: Server, content: bytes) -> None:
    """What is nested too deeply, or would break the template, is a 400 and not a connection that breaks off."""
    response = server.http.post("/v1/chat/completions", content=content)
    assert (response.status_code, response.json()["error"]["type"]) == (400, "invalid_request_error")
    assert list(server.journal.iterdir()) == []


def test_half_a_character_in_a_role(server: Server) -> None:
    """JSON can hold what no command line can; the request is answered."""
    content = b'{"messages": [{"role": "user\\ud800", "content": "ECHO ok"}]}'
    answer = server.http.post("/v1/chat/completions", content=content)
    assert answer.json()["choices"][0]["message"]["content"] == "ok"


def test_no_tokens_are_an_answer_without_words(server: Server) -> None:
    """max_tokens 0 is no absent limit: no program is started, and the answer ends for its length."""
    whole = server.chat("LOOP", max_tokens=0).json()["choices"][0]
    assert (whole["message"]["content"], whole["finish_reason"]) == ("", "length")
    first, last, done = events(server.chat("LOOP", max_tokens=0, stream=True))
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": None}
    assert (last["choices"][0]["finish_reason"], done) == ("length", "[DONE]")
    assert list(server.journal.iterdir()) == []


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves(server: Server, stream: bool) -> None:  # noqa: FBT001 - a parameter of the test
    """The program ends at once, its files go, and the next request is answered."""
    body = json.dumps(ask(picture("SLOW"), max_tokens=1000, stream=stream)).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.port), 20) as leaver:
        leaver.sendall(head.encode() + body)
        assert is_running(server.noted()[0]["pid"])
        assert not stream or leaver.recv(1000).startswith(b"HTTP/1.1 200")
    pid = server.noted()[0]["pid"]
    eventually(lambda: not is_running(pid), within_s=5)
    assert eventually(lambda: not server.leftovers())
    assert server.chat("ECHO next").json()["choices"][0]["message"]["content"] == "next"


def test_one_at_a_time(server: Server) -> None:
    """A second request waits for the first one's program to be gone."""
    answers: list[int] = []
    clients = [
        threading.Thread(target=lambda: answers.append(server.chat("SLOW", max_tokens=20).status_code))
        for _ in range(3)
    ]
    for client in clients:
        client.start()
    started = 0
    while any(client.is_alive() for client in clients):
        pids = [json.loads(path.read_text())["pid"] for path in server.journal.glob("*.json")]
        assert sum(map(is_running, pids)) <= 1
        started = max(started, len(pids))
    assert (answers, len(server.noted(3))) == ([200] * 3, 3)


def test_sigterm_within_an_answer(server: Server) -> None:
    """The program ends with the server, at once, and no file is left."""
    with server.http.stream("POST", "/v1/chat/completions", json=ask(picture("SLOW"), stream=True)) as response:
        lines = (line for line in response.iter_lines() if "w00" in line)  # given up, it would end the request
        assert next(lines)
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(5) in (0, -signal.SIGTERM)
    assert not is_running(server.noted()[0]["pid"])
    assert list(server.spool.iterdir()) == []


def test_kill_within_an_answer(server: Server, start: Callable[..., Server]) -> None:
    """Even after a kill -9 the program dies; the next start removes the files."""
    with server.http.stream("POST", "/v1/chat/completions", json=ask(picture("SLOW"), stream=True)) as response:
        lines = (line for line in response.iter_lines() if "w00" in line)  # given up, it would end the request
        assert next(lines)
        server.process.kill()
        server.process.wait()
    eventually(lambda: not is_running(server.noted()[0]["pid"]), within_s=5)
    assert len(server.leftovers()) == 2
    start().until_ready()
    assert server.leftovers() == []


def test_another_servers_files_are_left_alone(server: Server, start: Callable[..., Server]) -> None:
    """What a server that runs needs is not removed by another one's start."""
    before = list(server.spool.iterdir())
    start().until_ready()
    assert set(before) < set(server.spool.iterdir())


@pytest.mark.parametrize("missing", ["m.gguf", "mm.gguf", *PROGRAMS])
def test_what_is_missing_is_said_at_the_start(folder: Path, start: Callable[..., Server], missing: str) -> None:
    """The server does not begin without its files and programs."""
    (folder / missing).unlink()
    begun = start()
    assert begun.process.wait(20) == 1
    assert missing in begun.log.read_text()


def test_a_chat_program_is_refused(start: Callable[..., Server]) -> None:
    """Today's llama-cli talks to a person, banner and all."""
    begun = start(env={"FAKE_CLI_CHATS": "1"})
    assert begun.process.wait(20) == 1
    assert "llama-completion of the same build" in begun.log.read_text()
