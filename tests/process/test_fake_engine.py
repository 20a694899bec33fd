"""The fake engine does what it says, and where it plays llama-server it answers as llama-server was measured to."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from unused_ports import unused_port

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SCRIPT = Path(__file__).with_name("fake_engine.py")
CHAT = "/v1/chat/completions"
LOADING = {"error": {"code": 503, "message": "Loading model", "type": "unavailable_error"}}
PIXEL = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
DEADLINE_S = 10.0


def eventually(question: Callable[[], bool]) -> None:
    """Return as soon as the answer is yes; fail when it is still no at the deadline."""
    deadline = time.monotonic() + DEADLINE_S
    while not question():
        assert time.monotonic() < deadline, "still not so"
        time.sleep(0.005)


def prompt(text: str = "hi", **body: Any) -> dict[str, Any]:
    """A chat request with one user message."""
    return {"messages": [{"role": "user", "content": text}], **body}


@dataclass
class Fake:
    """A started fake engine and a client for it."""

    process: subprocess.Popen[bytes]
    port: int
    stderr: Path
    client: httpx.Client

    def health(self) -> int | None:
        """Status of /health, None without an answer."""
        try:
            return self.client.get("/health").status_code
        except httpx.TransportError:
            return None

    def chat(self, text: str = "hi", **body: Any) -> httpx.Response:
        return self.client.post(CHAT, json=prompt(text, **body))

    def stats(self) -> dict[str, Any]:
        seen: dict[str, Any] = self.client.get("/stats").json()
        return seen

    def resident_mb(self) -> int:
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") // 2**20

    def log(self) -> str:
        return self.stderr.read_text()

    def exit_code(self) -> int:
        return self.process.wait(DEADLINE_S)

    def send(self, body: dict[str, Any]) -> socket.socket:
        """A raw connection on which one chat request was sent and nothing read; closed after the answer."""
        head, data = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n", json.dumps(body).encode()
        raw = socket.create_connection(("127.0.0.1", self.port), timeout=DEADLINE_S)
        raw.sendall(head.encode() + b"Content-Length: %d\r\n\r\n" % len(data) + data)
        return raw


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Callable[..., Fake]]:
    """Starts fakes in groups of their own, waits for the given health, and ends the groups."""
    with contextlib.ExitStack() as stack:

        def start(*flags: str, health: int | None = 200, port: int | None = None, **environ: str) -> Fake:
            port = port or unused_port()
            stderr = tmp_path / f"stderr-{port}-{time.monotonic_ns()}"
            argv = [sys.executable, str(SCRIPT), "--port", str(port), *flags]
            with stderr.open("wb") as file:
                process = subprocess.Popen(argv, env={**os.environ, **environ}, stderr=file, start_new_session=True)
            stack.callback(end_group, process)
            client = stack.enter_context(httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=DEADLINE_S))
            fake = Fake(process, port, stderr, client)
            eventually(lambda: process.poll() is not None or fake.health() == health)
            return fake

        yield start


def end_group(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def read_to_end(raw: socket.socket) -> bytes:
    """All bytes until the other side closes."""
    return b"".join(iter(lambda: raw.recv(65536), b""))


def events(text: str) -> list[Any]:
    """The JSON of each SSE event; `[DONE]` as it is."""
    lines = [line.removeprefix("data: ") for line in text.split("\n") if line.startswith("data: ")]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


def text_of(stream: list[Any]) -> str:
    """The content that a stream's chat chunks carry."""
    deltas = [choice["delta"] for event in stream if event != "[DONE]" for choice in event.get("choices", [])]
    return "".join(delta.get("content") or "" for delta in deltas)


class TestStart:
    def test_health_is_refused_then_503_then_200(self, launch: Callable[..., Fake]) -> None:
        """Before the bind connections are refused, while loading every API path is 503, then /health is ok."""
        fake = launch("--bind-delay-s", "0.2", "--load-s", "0.8", health=503)
        assert fake.client.get("/v1/models").json() == LOADING
        assert fake.chat().json() == LOADING
        eventually(lambda: fake.health() == 200)
        assert fake.client.get("/health").content == b'{"status":"ok"}'

    def test_bind_delay_refuses(self, launch: Callable[..., Fake], tmp_path: Path) -> None:
        """An engine that does not bind runs, and refuses."""
        fake = launch("--never-bind", "--starts-log", str(tmp_path / "starts"), health=None)
        eventually((tmp_path / "starts").exists)
        assert fake.health() is None
        assert fake.process.poll() is None

    def test_never_ready(self, launch: Callable[..., Fake]) -> None:
        """An engine that is never ready still tells its stats, that it is not ready among them."""
        fake = launch("--never-ready", health=503)
        assert fake.stats()["ready"] is False

    def test_refused_while_loading(self, launch: Callable[..., Fake]) -> None:
        """As vLLM an engine can refuse connections until it is loaded."""
        fake = launch("--bind-when-loaded", "--load-s", "0.5", health=None)
        assert fake.health() is None
        eventually(lambda: fake.health() == 200)

    def test_progress_is_logged(self, launch: Callable[..., Fake]) -> None:
        """A load can be seen in the log, a line each 0.1 s, and one that hangs then falls silent."""
        fake = launch("--progress-log", "--load-s", "0.4", "--never-ready", health=503)
        lines = [f"load_tensors: loading model tensors, {percent} %" for percent in (25, 50, 75, 100)]
        eventually(lambda: fake.log().splitlines()[1:] == lines)
        assert fake.health() == 503

    def test_load_time_by_size(self, launch: Callable[..., Fake]) -> None:
        """A size makes the load longer also where there is no GPU to take it."""
        start = time.monotonic()
        launch("--gpu-mb", "512", "--load-s-per-gb", "1")
        assert time.monotonic() - start >= 0.5

    def test_failed_start(self, launch: Callable[..., Fake]) -> None:
        """A failing start prints its text to stderr and exits with 1, or with the code that was asked for."""
        fake = launch("--fail-start", "failed to allocate buffer for kv cache")
        assert fake.exit_code() == 1
        assert "failed to allocate buffer for kv cache\n" in fake.log()
        assert launch("--fail-start", "no", "--exit-code", "7").exit_code() == 7

    def test_only_the_first_starts_fail(self, launch: Callable[..., Fake], tmp_path: Path) -> None:
        """With a state file the first N starts fail and the next one works; each start leaves its pid and time."""
        log = tmp_path / "starts"
        flags = ["--fail-start", "no", "--fail-start-times", "2", "--state", str(tmp_path / "count")]
        fakes = [launch(*flags, "--starts-log", str(log)) for _ in range(3)]
        assert [fake.process.poll() for fake in fakes] == [1, 1, None]
        lines = [line.split() for line in log.read_text().splitlines()]
        assert [int(pid) for pid, _ in lines] == [fake.process.pid for fake in fakes]
        assert all(abs(float(at) - time.time()) < 60 for _, at in lines)

    def test_taken_port(self, launch: Callable[..., Fake]) -> None:
        """A port in use ends the start with llama-server's words and exit code 1."""
        first = launch()
        second = launch("--alias", "second", port=first.port, health=None)
        assert second.exit_code() == 1
        assert "couldn't bind HTTP server socket" in second.log()
        assert first.health() == 200

    def test_free_port(self, tmp_path: Path) -> None:
        """Port 0 takes a free port and says which on stderr."""
        with subprocess.Popen([sys.executable, SCRIPT, "--port", "0"], stderr=subprocess.PIPE, text=True) as process:
            assert process.stderr
            named = re.search(r"listening on (http://\S+)", process.stderr.readline())
            assert named
            assert httpx.get(f"{named[1]}/stats").json()["pid"] == process.pid
            process.kill()

    def test_llama_server_flags(self, launch: Callable[..., Fake]) -> None:
        """Flags of llama-server, short and unknown ones too, are no error, and the whole argv is in /stats."""
        words = "-m /m/a.gguf -ngl 99 -c 4096 -np 2 -ctk q8_0 --temp 0.1 --jinja --no-mmap -mg 0 --top-k -1 -fa on"
        flags = words.split()
        fake = launch(*flags)
        assert fake.stats()["argv"][2:] == flags
        props = fake.client.get("/props").json()
        assert (props["model_path"], props["total_slots"]) == ("/m/a.gguf", 2)
        assert props["default_generation_settings"]["n_ctx"] == 2048

    def test_version(self) -> None:
        """--version prints a build as llama-server does, to stderr, and ends."""
        done = subprocess.run([sys.executable, SCRIPT, "--version"], capture_output=True, text=True, check=True)
        assert re.match(r"version: \d+ \(\w+\)\nbuilt with ", done.stderr)

    def test_memory(self, launch: Callable[..., Fake]) -> None:
        """Memory that it was told to take is resident."""
        small, large = launch(), launch("--memory-mb", "100")
        assert large.resident_mb() - small.resident_mb() > 95


class TestAnswers:
    def test_whole_chat(self, launch: Callable[..., Fake]) -> None:
        """A chat answer has the fields of llama-server's, counts a token per prompt byte, and stops by itself."""
        answer = launch("--alias", "tiny").chat("héllo").json()
        message = {"role": "assistant", "content": "w0 w1 w2 w3 w4 w5 w6 w7"}
        assert answer["choices"] == [{"finish_reason": "stop", "index": 0, "message": message}]
        assert answer["usage"] == {"completion_tokens": 8, "prompt_tokens": 6, "total_tokens": 14}
        assert (answer["object"], answer["model"]) == ("chat.completion", "tiny")

    @pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
    def test_token_limit(self, launch: Callable[..., Fake], name: str) -> None:
        """A limit below the answer's length cuts it with finish_reason length."""
        choice = launch("--tokens", "20").client.post(CHAT, json={**prompt(), name: 2}).json()["choices"][0]
        assert (choice["message"]["content"], choice["finish_reason"]) == ("w0 w1", "length")

    def test_echo(self, launch: Callable[..., Fake]) -> None:
        """A last message that asks for an echo is answered with its text; no other message is."""
        fake = launch()
        text = "  one  two\nthree 🙂 "
        assert fake.chat("ECHO " + text).json()["choices"][0]["message"]["content"] == text
        history = [{"role": "user", "content": "ECHO no"}, {"role": "user", "content": [{"type": "text", "text": "x"}]}]
        assert fake.client.post(CHAT, json={"messages": history}).json()["choices"][0]["message"]["content"][:2] == "w0"

    def test_stream(self, launch: Callable[..., Fake]) -> None:
        """A stream begins with a null content, ends with finish_reason, asked-for usage and [DONE]."""
        reply = launch("--tokens", "3").chat(stream=True, stream_options={"include_usage": True})
        assert reply.headers["content-type"] == "text/event-stream"
        assert reply.headers["transfer-encoding"] == "chunked"
        first, *words, last, usage, done = events(reply.text)
        assert first["choices"][0]["delta"] == {"role": "assistant", "content": None}
        assert [event["choices"][0]["delta"]["content"] for event in words] == ["w0", " w1", " w2"]
        assert last["choices"] == [{"finish_reason": "stop", "index": 0, "delta": {}}]
        assert (usage["choices"], usage["usage"]["completion_tokens"], done) == ([], 3, "[DONE]")
        assert len({event["id"] for event in [first, *words, last, usage]}) == 1

    def test_no_usage_unasked(self, launch: Callable[..., Fake]) -> None:
        """A stream carries no usage unless asked."""
        assert "usage" not in launch().chat(stream=True).text

    def test_text_completion(self, launch: Callable[..., Fake]) -> None:
        """/v1/completions answers text, and streams it with usage on the last chunk."""
        fake = launch()
        body = {"prompt": "ECHO a b", "max_tokens": 9}
        whole = fake.client.post("/v1/completions", json=body).json()
        assert (whole["object"], whole["choices"][0]["text"]) == ("text_completion", "a b")
        *_, last, done = events(fake.client.post("/v1/completions", json={**body, "stream": True}).text)
        assert (last["choices"][0]["finish_reason"], last["usage"]["prompt_tokens"], done) == ("stop", 8, "[DONE]")

    def test_reasoning(self, launch: Callable[..., Fake]) -> None:
        """Reasoning comes before the content and counts as completion tokens."""
        fake = launch("--reasoning", "--tokens", "1")
        answer = fake.chat().json()
        assert answer["choices"][0]["message"]["reasoning_content"] == "Thinking hard..."
        assert answer["usage"]["completion_tokens"] == 4
        deltas = [event["choices"][0]["delta"] for event in events(fake.chat(stream=True).text)[:-1]]
        assert [next(iter(delta), "") for delta in deltas] == ["role", *["reasoning_content"] * 3, "content", ""]

    def test_other_endpoints(self, launch: Callable[..., Fake]) -> None:
        """Models, tokens and embeddings answer in OpenAI's and llama-server's shapes; the rest is 404."""
        fake = launch("--alias", "tiny", "--embeddings")
        assert fake.client.get("/v1/models").json()["data"][0]["id"] == "tiny"
        assert fake.client.post("/tokenize", json={"content": "hi"}).json() == {"tokens": [104, 105]}
        rows = fake.client.post("/v1/embeddings", json={"input": ["a", "b"]}).json()["data"]
        assert [row["index"] for row in rows] == [0, 1]
        assert rows[0]["embedding"] != rows[1]["embedding"]
        assert fake.client.get("/v1/nope").json()["error"]["type"] == "not_found_error"
        assert fake.client.post("/v1/nope", json={}).status_code == 404

    def test_embeddings_are_off(self, launch: Callable[..., Fake]) -> None:
        """Without --embeddings the endpoint is 501."""
        reply = launch().client.post("/v1/embeddings", json={"input": "a"})
        assert (reply.status_code, reply.json()["error"]["type"]) == (501, "not_supported_error")

    def test_context_overflow(self, launch: Callable[..., Fake]) -> None:
        """A prompt longer than a slot's share of the context is llama-server's 400, which names both sizes."""
        fake = launch("--ctx-size", "40", "--parallel", "2")
        assert fake.chat("x" * 20).status_code == 200
        reply = fake.chat("x" * 21)
        assert reply.status_code == 400
        message = "request (21 tokens) exceeds the available context size (20 tokens), try increasing it"
        expected = {"code": 400, "message": message, "type": "exceed_context_size_error"}
        assert reply.json() == {"error": {**expected, "n_prompt_tokens": 21, "n_ctx": 20}}
        assert fake.chat("x" * 9, fake={"max_context": 8}).status_code == 400

    def test_image_needs_projector(self, launch: Callable[..., Fake]) -> None:
        """An image is a 500 without --mmproj and an answer with it."""
        body = {"messages": [{"role": "user", "content": [{"type": "text", "text": "what"}, PIXEL]}]}
        reply = launch().client.post(CHAT, json=body)
        assert (reply.status_code, reply.json()["error"]["type"]) == (500, "server_error")
        seeing = launch("--mmproj", "p.gguf")
        assert seeing.client.post(CHAT, json=body).status_code == 200
        assert seeing.client.get("/props").json()["modalities"]["vision"] is True

    def test_nonsense(self, launch: Callable[..., Fake]) -> None:
        """An answer can be rubbish, whatever was asked, and still be whole."""
        choice = launch().chat("ECHO hi", fake={"nonsense": True}).json()["choices"][0]
        assert (choice["message"]["content"], choice["finish_reason"]) == ("!!!!!!!!", "stop")

    @pytest.mark.parametrize("body", [b"{bad", b"[]", b'{"fake": {"tokenz": 3}}', b"{}"])
    def test_bad_body(self, launch: Callable[..., Fake], body: bytes) -> None:
        """A body that is no JSON object, lacks messages or names an unknown knob is a 400, and the engine lives."""
        fake = launch()
        assert fake.client.post(CHAT, content=body).status_code == 400
        assert fake.chat().status_code == 200


class TestConnections:
    def test_stats(self, launch: Callable[..., Fake]) -> None:
        """/stats has the last request as it came, names of the environment without values, and counts of GETs."""
        fake = launch()
        body = b'{ "messages": [], "x": 1.50 }'
        fake.client.post(CHAT, content=body, headers=[("X-Twice", "a"), ("X-Twice", "b")])
        seen = fake.stats()
        assert seen["last_request"]["body_text"] == body.decode()
        assert seen["last_request"]["body"] == {"messages": [], "x": 1.5}
        assert seen["last_request"]["headers"]["x-twice"] == "a, b"
        assert "PATH" in seen["env"]
        assert seen["gets"]["/health"] >= 1
        assert (seen["started"], seen["finished"], seen["aborted"], seen["faulted"]) == (1, 1, 0, 0)

    def test_slots(self, launch: Callable[..., Fake]) -> None:
        """Requests beyond the slots wait, and go on when a slot is free."""
        fake = launch("--parallel", "1")
        first, second = fake.send(prompt(fake={"head_delay_s": 60})), fake.send(prompt())
        eventually(lambda: bool(fake.stats()["waiting"] == 1))
        assert fake.stats()["max_in_flight"] == 2
        first.close()
        assert b" 200 OK" in second.recv(999)
        eventually(lambda: bool(fake.stats()["in_flight"] == 0))
        second.close()

    @pytest.mark.parametrize("stream", [True, False])
    def test_client_leaves(self, launch: Callable[..., Fake], *, stream: bool) -> None:
        """A client that leaves is noticed at once, streamed or not, and its slot is free again."""
        fake = launch("--parallel", "1")
        raw = fake.send(prompt(stream=stream, fake={"token_delay_s": 60}))
        eventually(lambda: bool(fake.stats()["in_flight"] == 1))
        raw.close()
        eventually(lambda: bool(fake.stats()["aborted"] == 1))
        assert fake.chat().status_code == 200
        assert fake.stats()["in_flight"] == 0

    def test_keep_alive_ends(self, launch: Callable[..., Fake]) -> None:
        """As llama-server it closes a connection after its number of requests, and says so on the last."""
        fake = launch("--keep-alive-requests", "2")
        before = fake.stats()["connections"]
        with httpx.Client(base_url=fake.client.base_url) as client:
            closing = [client.get("/health").headers.get("connection") for _ in range(4)]
        assert closing == [None, "close", None, "close"]
        assert fake.stats()["connections"] - before >= 2

    def test_idle_connection_is_closed(self, launch: Callable[..., Fake]) -> None:
        """An idle connection is closed after --keep-alive-s, an answering one is not."""
        fake = launch("--keep-alive-s", "0.1")
        with socket.create_connection(("127.0.0.1", fake.port), timeout=DEADLINE_S) as raw:
            assert read_to_end(raw) == b""
        with fake.send(prompt(fake={"head_delay_s": 0.4})) as raw:
            assert read_to_end(raw).startswith(b"HTTP/1.1 200 OK")

    def test_errors_and_close_end_the_connection(self, launch: Callable[..., Fake]) -> None:
        """An error answer closes the connection, and so does a client's `Connection: close`."""
        fake = launch()
        assert fake.client.get("/nope").headers["connection"] == "close"
        assert fake.client.get("/health", headers={"connection": "close"}).headers["connection"] == "close"

    def test_chunked_request(self, launch: Callable[..., Fake]) -> None:
        """A request body in chunks is read whole."""
        body = json.dumps(prompt("ECHO chunked")).encode()
        reply = launch().client.post(CHAT, content=iter([body[:7], body[7:]]))
        assert reply.json()["choices"][0]["message"]["content"] == "chunked"


class TestFaults:
    @pytest.mark.parametrize(("flag", "code"), [("--crash-after-tokens", -9), ("--exit-after-tokens", 0)])
    def test_process_ends_within_a_stream(self, launch: Callable[..., Fake], flag: str, code: int) -> None:
        """The process ends when N tokens are out, which the client has received."""
        fake = launch(flag, "2")
        with fake.send(prompt(stream=True)) as raw:
            text = read_to_end(raw).decode()
        assert fake.exit_code() == code
        assert text_of(events(text)) == "w0 w1"
        assert "[DONE]" not in text
        assert not text.endswith("0\r\n\r\n")

    def test_dropped_stream(self, launch: Callable[..., Fake]) -> None:
        """A dropped stream lacks its end and the engine lives; other requests are whole."""
        fake = launch()
        with fake.send(prompt(stream=True, fake={"drop_after_tokens": 3})) as raw:
            text = read_to_end(raw).decode()
        assert text_of(events(text)) == "w0 w1 w2"
        assert not text.endswith("0\r\n\r\n")
        assert text_of(events(fake.chat(stream=True).text)).endswith("w7")
        assert fake.stats()["faulted"] == 1

    def test_drop_before_an_answer(self, launch: Callable[..., Fake]) -> None:
        """Without streaming a drop leaves nothing at all of the answer."""
        with launch("--drop-after-tokens", "3").send(prompt()) as raw:
            assert read_to_end(raw) == b""

    def test_reset_stream(self, launch: Callable[..., Fake]) -> None:
        """A reset reaches the client as ECONNRESET."""
        with launch("--reset-after-tokens", "2").send(prompt(stream=True)) as raw, pytest.raises(ConnectionResetError):
            read_to_end(raw)

    def test_error_event(self, launch: Callable[..., Fake]) -> None:
        """An error within a stream is an event before [DONE], as vLLM's; not streamed it is a 500."""
        fake = launch("--error-after-tokens", "1")
        *_, word, error, done = events(fake.chat(stream=True).text)
        assert word["choices"][0]["delta"]["content"] == "w0"
        assert (error["error"]["code"], done) == (500, "[DONE]")
        assert fake.chat().status_code == 500

    def test_abort_with_done(self, launch: Callable[..., Fake]) -> None:
        """A stream can be made to end in [DONE] with a finish_reason that says it was cut."""
        *_, last, done = events(launch().chat(stream=True, fake={"finish_reason": "abort"}).text)
        assert (last["choices"][0]["finish_reason"], done) == ("abort", "[DONE]")

    def test_error_times(self, launch: Callable[..., Fake]) -> None:
        """Only the first errors are given when their number is set."""
        fake = launch("--error-status", "503", "--error-times", "2")
        replies = [fake.chat() for _ in range(3)]
        assert [reply.status_code for reply in replies] == [503, 503, 200]
        assert set(replies[0].json()["error"]) == {"code", "message", "type"}

    def test_garbage(self, launch: Callable[..., Fake]) -> None:
        """Garbage is no HTTP."""
        with pytest.raises(httpx.RemoteProtocolError):
            launch("--garbage").chat()

    def test_bad_json(self, launch: Callable[..., Fake]) -> None:
        """A body can be half a JSON document under a 200 and a true length."""
        reply = launch("--bad-json").chat()
        assert (reply.status_code, reply.text[:11]) == (200, '{"choices":')
        with pytest.raises(ValueError, match=r"Unterminated|Expecting|delimiter"):
            reply.json()

    def test_split_bytes(self, launch: Callable[..., Fake]) -> None:
        """A split stream is written in chunks of N bytes, which cut characters, and joins to the same text."""
        fake = launch("--split-bytes", "7", "--unicode")
        with fake.send(prompt(stream=True, max_tokens=3)) as raw:
            rest = read_to_end(raw).partition(b"\r\n\r\n")[2]
        pieces = []
        while rest:
            size, _, rest = rest.partition(b"\r\n")
            pieces.append(rest[: int(size, 16)])
            rest = rest[int(size, 16) + 2 :]
        assert {len(piece) for piece in pieces[:-2]} == {7}
        assert any(b"\x99" in piece and b"\xf0" not in piece for piece in pieces)
        assert text_of(events(b"".join(pieces).decode())) == "w0é漢🙂 w1é漢🙂 w2é漢🙂"

    def test_delays(self, launch: Callable[..., Fake]) -> None:
        """Head, first token and further tokens come when they were told to."""
        fake = launch("--head-delay-s", "0.1", "--first-token-delay-s", "0.5", "--token-delay-s", "0.05")
        start = time.monotonic()
        with fake.client.stream("POST", CHAT, json=prompt(stream=True, max_tokens=3)) as reply:
            marks = [time.monotonic() - start]
            marks += [time.monotonic() - start for line in reply.iter_lines() if '"content":"' in line]
        assert len(marks) == 4
        assert all(at >= due for at, due in zip(marks, [0.1, 0.6, 0.65, 0.7], strict=True))
        assert marks[0] < 0.6

    def test_comments(self, launch: Callable[..., Fake]) -> None:
        """A waiting stream carries SSE comments."""
        text = launch("--comment-every-s", "0.02").chat(stream=True, fake={"first_token_delay_s": 0.11}).text
        assert text.split("\n").count(":") == 5
        assert text_of(events(text)).endswith("w7")

    def test_crash_after_requests(self, launch: Callable[..., Fake]) -> None:
        """It can die between requests, the last answer whole."""
        fake = launch("--crash-after-requests", "2")
        assert [fake.chat().status_code for _ in range(2)] == [200, 200]
        assert fake.exit_code() == -signal.SIGKILL

    def test_chatty(self, launch: Callable[..., Fake]) -> None:
        """It writes as many lines of log per request as it was told to."""
        fake = launch("--chatty", "500")
        fake.chat()
        assert fake.log().count("request 1, line") == 500

    def test_health_dies(self, launch: Callable[..., Fake]) -> None:
        """/health can turn 503 while chat still answers."""
        fake = launch("--health-dies-after-s", "0.2")
        eventually(lambda: fake.health() == 503)
        assert fake.chat().status_code == 200

    def test_health_hangs(self, launch: Callable[..., Fake]) -> None:
        """/health can accept and never answer while chat still answers."""
        fake = launch("--hang-health-after-s", "0", health=None)
        eventually(lambda: "model loaded" in fake.log())
        with pytest.raises(httpx.ReadTimeout):
            fake.client.get("/health", timeout=0.2)
        assert fake.chat().status_code == 200


class TestStop:
    def test_idle(self, launch: Callable[..., Fake]) -> None:
        """An idle engine ends on SIGTERM with 0."""
        fake = launch()
        fake.process.terminate()
        assert fake.exit_code() == 0

    def test_while_loading(self, launch: Callable[..., Fake]) -> None:
        """While loading the signal kills, as it does llama-server."""
        fake = launch("--never-ready", health=503)
        fake.process.terminate()
        assert fake.exit_code() == -signal.SIGTERM

    def test_ignored(self, launch: Callable[..., Fake]) -> None:
        """An engine that ignores SIGTERM answers on, and SIGKILL ends it."""
        fake = launch("--ignore-term")
        fake.process.terminate()
        assert [fake.chat().status_code for _ in range(20)] == [200] * 20
        fake.process.kill()
        assert fake.exit_code() == -signal.SIGKILL

    def test_delayed(self, launch: Callable[..., Fake]) -> None:
        """A delayed stop ends no sooner, and takes no new connections meanwhile."""
        fake = launch("--term-delay-s", "0.5")
        start = time.monotonic()
        fake.process.terminate()
        eventually(lambda: connection_refused(fake.port))
        assert fake.process.poll() is None
        assert fake.exit_code() == 0
        assert time.monotonic() - start >= 0.5

    def test_waits_for_streams(self, launch: Callable[..., Fake]) -> None:
        """As llama-server it does not end while a stream's socket is open, though it writes nothing more."""
        fake = launch("--slow-stop-with-stream")
        with fake.send(prompt(stream=True, fake={"tokens": 10**6, "token_delay_s": 0.01})) as raw:
            received = b""
            while b'"w0"' not in received:
                received += raw.recv(65536)
            fake.process.terminate()
            raw.settimeout(0.3)
            with pytest.raises(TimeoutError):
                read_to_end(raw)
            assert fake.process.poll() is None
        assert fake.exit_code() == 0

    def test_stream_is_cut_by_default(self, launch: Callable[..., Fake]) -> None:
        """Without that flag SIGTERM ends the process and cuts the stream, with nothing about it on stderr."""
        fake = launch()
        with fake.send(prompt(stream=True, fake={"token_delay_s": 60})) as raw:
            eventually(lambda: bool(fake.stats()["in_flight"] == 1))
            fake.process.terminate()
            assert b"[DONE]" not in read_to_end(raw)
        assert fake.exit_code() == 0
        assert fake.log().endswith("model loaded\n")

    def test_child_outlives_a_kill(self, launch: Callable[..., Fake]) -> None:
        """As vLLM's EngineCore a grandchild in the group outlives SIGKILL of its parent, and no clean stop."""
        fake, clean = launch("--spawn-child"), launch("--spawn-child")
        left, ended = fake.stats()["child_pid"], clean.stats()["child_pid"]
        assert os.getpgid(left) == fake.process.pid
        fake.process.kill()
        clean.process.terminate()
        assert (fake.exit_code(), clean.exit_code()) == (-signal.SIGKILL, 0)
        assert alive(left)
        eventually(lambda: not alive(ended))

    @pytest.mark.parametrize("flag", ["--child-session", "--leave-child"])
    def test_child_that_is_left(self, launch: Callable[..., Fake], flag: str) -> None:
        """A grandchild in a session of its own outlives the end of the group, another one a clean stop."""
        fake = launch("--spawn-child", flag)
        child = fake.stats()["child_pid"]
        try:
            if flag == "--child-session":
                assert os.getsid(child) == child
                os.killpg(fake.process.pid, signal.SIGKILL)
            else:
                assert os.getpgid(child) == fake.process.pid
                fake.process.terminate()
            fake.exit_code()
            assert alive(child)
        finally:
            os.kill(child, signal.SIGKILL)


class TestSleep:
    """As vLLM 0.32; what becomes of GPU memory is tested with the simulator."""

    def test_chat_hangs_and_health_does_not_tell(self, launch: Callable[..., Fake]) -> None:
        """Asleep /health stays 200 and a chat hangs; waking answers it."""
        fake = launch("--sleep-mode")
        assert fake.client.get("/is_sleeping").json() == {"is_sleeping": False}
        assert fake.client.post("/sleep?level=1").json() == {"status": "sleeping", "level": 1}
        with fake.send(prompt("ECHO morning")) as raw:
            eventually(lambda: bool(fake.stats()["in_flight"] == 1))
            assert (fake.health(), fake.client.get("/is_sleeping").json()) == (200, {"is_sleeping": True})
            raw.settimeout(0.2)
            with pytest.raises(TimeoutError):
                raw.recv(1)
            raw.settimeout(DEADLINE_S)
            assert fake.client.post("/wake_up").json() == {"status": "awake", "tags": None}
            assert b'"content":"morning"' in read_to_end(raw)
        assert fake.client.get("/is_sleeping").json() == {"is_sleeping": False}

    def test_level_2_needs_its_weights_again(self, launch: Callable[..., Fake]) -> None:
        """After level 2 answers are rubbish until the weights are loaded again, which they cannot be while asleep."""
        fake = launch("--sleep-mode")
        fake.client.post("/sleep?level=2")
        reload = {"method": "reload_weights"}
        assert fake.client.post("/collective_rpc", json=reload).status_code == 500
        assert fake.client.post("/wake_up?tags=weights").json() == {"status": "sleeping", "tags": ["weights"]}
        assert fake.client.get("/is_sleeping").json() == {"is_sleeping": True}
        assert fake.client.post("/wake_up?tags=kv_cache").json() == {"status": "awake", "tags": ["kv_cache"]}
        assert answer_of(fake) == "!!!!!!!!"
        assert fake.client.post("/collective_rpc", json=reload).json() == {"results": [None]}
        assert answer_of(fake) == "w0 w1 w2 w3 w4 w5 w6 w7"

    def test_weights_lost_once_stay_lost(self, launch: Callable[..., Fake]) -> None:
        """Level 1 after an unmended level 2 brings nothing back, and a second /sleep changes nothing."""
        fake = launch("--sleep-mode")
        for call in ("/sleep?level=1", "/sleep?level=2", "/wake_up"):
            fake.client.post(call)
        assert answer_of(fake)[:2] == "w0"
        for call in ("/sleep?level=2", "/wake_up", "/sleep?level=1", "/wake_up"):
            fake.client.post(call)
        assert answer_of(fake) == "!!!!!!!!"

    def test_nonsense_after_waking(self, launch: Callable[..., Fake]) -> None:
        """With its flag an engine that has slept answers rubbish for good, also from level 1."""
        fake = launch("--sleep-mode", "--nonsense-after-wake")
        assert answer_of(fake)[:2] == "w0"
        fake.client.post("/sleep")
        fake.client.post("/wake_up")
        fake.client.post("/collective_rpc", json={"method": "reload_weights"})
        assert answer_of(fake) == "!!!!!!!!"

    def test_falling_asleep_aborts(self, launch: Callable[..., Fake]) -> None:
        """What is being answered ends with finish_reason abort, after the tokens that were out."""
        fake = launch("--sleep-mode")
        with fake.send(prompt(stream=True, fake={"tokens": 10**6, "token_delay_s": 0.01})) as raw:
            received = b""
            while b'"w0"' not in received:
                received += raw.recv(65536)
            fake.client.post("/sleep")
            *_, last, done = events((received + read_to_end(raw)).decode())
        assert (last["choices"][0]["finish_reason"], done) == ("abort", "[DONE]")

    def test_it_can_wait_for_answers(self, launch: Callable[..., Fake]) -> None:
        """With mode=wait an answer comes to its end before the engine sleeps."""
        fake = launch("--sleep-mode")
        with fake.send(prompt(fake={"head_delay_s": 0.3})) as raw:
            eventually(lambda: bool(fake.stats()["in_flight"] == 1))
            fake.client.post("/sleep?mode=wait")
            assert b'"finish_reason":"stop"' in read_to_end(raw)

    def test_level_0_pauses(self, launch: Callable[..., Fake]) -> None:
        """Level 0 only pauses, and waking ends that too."""
        fake = launch("--sleep-mode")
        fake.client.post("/sleep?level=0")
        assert fake.client.get("/is_sleeping").json() == {"is_sleeping": True}
        assert fake.client.post("/wake_up").json()["status"] == "awake"
        assert answer_of(fake)[:2] == "w0"

    def test_it_takes_its_time(self, launch: Callable[..., Fake]) -> None:
        """Falling asleep, waking and reloading take as long as they were told to."""
        fake = launch("--sleep-mode", "--sleep-s", "0.1", "--wake-s", "0.2", "--reload-s", "0.3")
        start = time.monotonic()
        for path, body in (("/sleep", None), ("/wake_up", None), ("/collective_rpc", {"method": "reload_weights"})):
            assert fake.client.post(path, json=body).status_code == 200
        assert time.monotonic() - start >= 0.6

    @pytest.mark.parametrize(
        ("method", "path", "status"),
        [("GET", "/sleep", 405), ("POST", "/sleep?level=3", 400), ("POST", "/collective_rpc", 400)],
    )
    def test_wrong_calls(self, launch: Callable[..., Fake], method: str, path: str, status: int) -> None:
        """Wrong calls are errors in vLLM's shape, and change nothing."""
        fake = launch("--sleep-mode")
        answer = fake.client.request(method, path)
        assert (answer.status_code, answer.json()["error"]["code"]) == (status, status)
        assert fake.client.get("/is_sleeping").json() == {"is_sleeping": False}

    def test_only_in_development_mode(self, launch: Callable[..., Fake]) -> None:
        """Without --sleep-mode the endpoints are there for VLLM_SERVER_DEV_MODE=1 alone, not for vLLM's flag."""
        assert launch("--enable-sleep-mode").client.post("/sleep", json={}).status_code == 404
        assert launch(VLLM_SERVER_DEV_MODE="1").client.post("/sleep", json={}).status_code == 200


def answer_of(fake: Fake) -> str:
    """The content of a chat answer."""
    return str(fake.chat().json()["choices"][0]["message"]["content"])


def alive(pid: int) -> bool:
    """Whether the process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def connection_refused(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except ConnectionRefusedError:
        return True
    except ConnectionResetError:
        pass  # it was on its way when the socket was closed
    return False
