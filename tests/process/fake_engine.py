#!/usr/bin/env python3
"""A stand-in for llama-server: the same HTTP API from a real process, with faults set on its command line.

    python tests/process/fake_engine.py --port 8081 --alias tiny --parallel 2 --load-s 0.5 --drop-after-tokens 3

It takes llama-server's command lines: an unknown flag is ignored, with its value. The knobs of one answer can also be
set by the request that wants it: `{"messages": [...], "fake": {"tokens": 50, "crash_after_tokens": 3}}`.
`GET /stats` tells what it saw, without a key; `LLAMA_API_KEY` and `VLLM_API_KEY` guard what they guard in the engines.
The answer is `w0 w1 ...`; a last user message `ECHO text` is answered with `text`.
A prompt counts one token per byte of text. An answer is whole only with a finish_reason and, streamed, `[DONE]`.

GPU memory is that of the simulated GPUs (docs/simulator.md); without them --gpu-mb takes none. --sleep-mode is vLLM's.

Status lines, error bodies, chunk shapes and keep-alive limits are those of llama.cpp's server as measured.
Knowingly different: a stream's head is sent before the first token, `--sse-ping-interval` has no effect, and a client
that leaves is noticed at once even when it did not stream.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import email
import email.message
import hashlib
import os
import resource
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

# As pytest has it (pythonpath in pyproject.toml); a script has only its own folder.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from process.fake_engine_answer import Answer, Token, parts_of, vector
from process.fake_engine_flags import Knobs, Settings, parse
from process.fake_engine_gpu import GpuMemory
from process.fake_engine_http import Connection, Cut, Reply, Request, encode, error_body
from process.fake_engine_sleep import SleepMode

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

MMPROJ_HINT = "hint: if this is unexpected, you may need to provide the mmproj"


class EngineError(Exception):
    """The engine fails within an answer and says so."""


class Aborted(Exception):
    """The engine went to sleep within an answer."""


@dataclass
class Stats:
    """Counters of POSTs: started = finished + aborted (client left) + faulted (the fake cut it) + in_flight."""

    started: int = 0
    finished: int = 0
    aborted: int = 0
    faulted: int = 0
    in_flight: int = 0
    max_in_flight: int = 0
    waiting: int = 0
    connections: int = 0
    gets: dict[str, int] = dataclasses.field(default_factory=dict)
    last_request: Request | None = None

    def begin(self, request: Request) -> None:
        """Count a POST as started and keep it for /stats."""
        self.started += 1
        self.in_flight += 1
        self.max_in_flight = max(self.max_in_flight, self.in_flight)
        self.last_request = request

    def end(self, outcome: str) -> None:
        """Count a POST as `finished`, `aborted` or `faulted`."""
        self.in_flight -= 1
        setattr(self, outcome, getattr(self, outcome) + 1)


class Engine:
    """One engine process: its phase, its slots, its routes."""

    def __init__(self, settings: Settings, knobs: Knobs, child: subprocess.Popen[bytes] | None) -> None:
        self.settings, self.knobs, self.child = settings, knobs, child
        self.name = settings.alias or settings.model
        self.stats = Stats()
        self.slots = asyncio.Semaphore(settings.parallel)
        self.ready_at: float | None = None
        self.stop, self.idle = asyncio.Event(), asyncio.Event()
        self.idle.set()
        self.errors_given = 0
        self.ballast = bytearray(b"\1") * (settings.memory_mb << 20)
        self.gpu = GpuMemory(settings, child.pid if child and settings.child_holds_gpu else os.getpid(), log)
        self.sleep = SleepMode(settings, self.gpu)

    async def run(self, *, fails: bool) -> None:
        """Bind, load, serve until SIGTERM, exit; before readiness the signal kills, as it does llama-server."""
        server = None if self.settings.bind_when_loaded else await self._bind()
        if not await self.gpu.load():
            leave(1)
        if self.settings.never_ready:
            await forever()
        if fails:
            log(str(self.settings.fail_start))
            leave(1 if self.knobs.exit_code is None else self.knobs.exit_code)
        server = server or await self._bind()
        loop = asyncio.get_running_loop()
        self.ready_at = loop.time()
        if not self.settings.ignore_term:
            loop.add_signal_handler(signal.SIGTERM, self.stop.set)
        log("srv          init: model loaded")
        await self.stop.wait()
        server.close()
        await asyncio.sleep(self.settings.term_delay_s)
        if self.settings.slow_stop_with_stream:
            await self.idle.wait()
        if self.child and not self.settings.leave_child:
            self.child.kill()
        # Unwinding would log the cancellation of each open connection among the engine's last lines.
        leave(0)

    async def _bind(self) -> asyncio.Server:
        await (forever() if self.settings.never_bind else asyncio.sleep(self.settings.bind_delay_s))
        host, port = self.settings.host, self.settings.port
        try:
            shared = not self.settings.shares_no_port
            server = await asyncio.start_server(
                self._converse, host, port, limit=2**20, backlog=1024, reuse_address=shared
            )
        except OSError:
            said = f"srv         start: couldn't bind HTTP server socket, hostname: {host}, port: {port}"
            log(self.settings.bind_failure or said)
            leave(1)
        log(f"srv          init: listening on http://{host}:{server.sockets[0].getsockname()[1]}")
        return server

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.stats.connections += 1
        connection = Connection(self.answer, self.settings.keep_alive_s, self.settings.keep_alive_requests)
        await connection.serve(reader, writer)

    async def answer(self, request: Request, reply: Reply) -> None:
        """Answer one request; raises Cut when a fault ends the connection."""
        if request.method == "GET":
            self.stats.gets[request.path] = self.stats.gets.get(request.path, 0) + 1
        if request.path == "/stats":
            await reply.json(self._seen())
        elif self.ready_at is None:
            await reply.error(503, "Loading model")
        elif not self._lets_in(request):
            await reply.error(401, "Invalid API Key")
        elif self.sleep.serves(request.path):
            await self.sleep.answer(request, reply, self.idle)
        elif request.method == "POST":
            await self._counted(request, reply)
        elif request.path == "/health":
            await self._health(reply, asyncio.get_running_loop().time() - self.ready_at)
        else:
            await self._describe(request.path, reply)

    def _lets_in(self, request: Request) -> bool:
        """Whether the key is shown where llama-server, or vLLM, asks for one."""
        vllm_key, key = os.environ.get("VLLM_API_KEY"), os.environ.get("LLAMA_API_KEY")
        if vllm_key and request.path.startswith("/v1"):
            key = vllm_key
        return not key or request.path == "/health" or request.headers.get("authorization") == f"Bearer {key}"

    def _seen(self) -> dict[str, Any]:
        process = {"pid": os.getpid(), "argv": sys.argv[1:], "env": sorted(os.environ)}
        process |= {"ready": self.ready_at is not None, "child_pid": self.child and self.child.pid}
        process |= {"gpu_mb": self.gpu.held_mb}
        last = self.stats.last_request
        return process | vars(self.stats) | {"last_request": last and last.shown()}

    async def _health(self, reply: Reply, age_s: float) -> None:
        hangs, dies = self.settings.hang_health_after_s, self.settings.health_dies_after_s
        if hangs is not None and age_s >= hangs:
            await forever()
        if dies is not None and age_s >= dies:
            await reply.error(503, "engine is dead")
        else:
            await reply.json({"status": "ok"})

    async def _describe(self, path: str, reply: Reply) -> None:
        """The model as /v1/models and /props show it."""
        limit, vision = self._context(self.knobs), self.settings.mmproj is not None
        if path == "/v1/models":
            shown = {"id": self.name, "object": "model", "created": 0, "owned_by": "llamacpp", "meta": {"n_ctx": limit}}
            await reply.json({"object": "list", "data": [shown]})
        elif path == "/props":
            about = {"model_alias": self.name, "model_path": self.settings.model, "modalities": {"vision": vision}}
            slots = {"total_slots": self.settings.parallel, "default_generation_settings": {"n_ctx": limit}}
            await reply.json(about | slots)
        elif path == "/metrics":
            await self._tell_metrics(reply)
        else:
            await reply.error(404, "File Not Found")

    async def _tell_metrics(self, reply: Reply) -> None:
        path = self.settings.metrics_file and Path(self.settings.metrics_file)
        if path and path.is_fifo():
            await forever()
        elif path:
            await reply.body(200, path.read_bytes())
        elif self.settings.metrics:
            await reply.body(200, f"# TYPE fake:posts_total counter\nfake:posts_total {self.stats.finished}\n".encode())
        else:
            await reply.error(501, "This server does not support metrics endpoint.")

    def _context(self, knobs: Knobs) -> int | None:
        """Tokens of context in one slot, None without a limit."""
        return knobs.max_context or self.settings.ctx_size // self.settings.parallel or None

    async def _counted(self, request: Request, reply: Reply) -> None:
        self.stats.begin(request)
        self.idle.clear()
        outcome = "aborted"
        try:
            await self._post(request, reply)
            outcome = "finished"
        except Cut:
            outcome = "faulted"
            raise
        finally:
            self.stats.end(outcome)
            if not self.stats.in_flight:
                self.idle.set()
        if self.stats.finished == self.settings.crash_after_requests:
            os.kill(os.getpid(), signal.SIGKILL)

    async def _post(self, request: Request, reply: Reply) -> None:
        if request.path.startswith("/v1/audio/") and "multipart" in request.headers.get("content-type", ""):
            await self._pause(self.knobs.head_delay_s, self.knobs, reply)
            await reply.json(heard(request))
            return
        body = request.json()
        try:
            knobs = dataclasses.replace(self.knobs, **body.get("fake", {}))
        except (TypeError, AttributeError) as error:
            await reply.error(400, f"not a JSON object, or `fake` names no knob: {error}")
            return
        for line in range(knobs.chatty):
            log(f"srv    update_slots: request {self.stats.started}, line {line}")
        if request.path == "/tokenize":
            await reply.json({"tokens": list(str(body.get("content", "")).encode("utf-8", "replace"))})
            return
        async with self._slot():
            try:
                await self._in_slot(request.path, body, knobs, reply)
            except (TypeError, AttributeError, LookupError, ValueError) as error:
                if reply.streaming:
                    raise
                await reply.error(400, f"the body has another shape: {error!r}")

    @contextlib.asynccontextmanager
    async def _slot(self) -> AsyncIterator[None]:
        self.stats.waiting += 1
        try:
            await self.slots.acquire()
        finally:
            self.stats.waiting -= 1
        try:
            yield
        finally:
            self.slots.release()

    async def _in_slot(self, path: str, body: dict[str, Any], knobs: Knobs, reply: Reply) -> None:
        await self.sleep.awake.wait()
        knobs = dataclasses.replace(knobs, nonsense=knobs.nonsense or self.sleep.nonsense)
        await self._pause(knobs.head_delay_s, knobs, reply)
        if knobs.garbage:
            reply.writer.write(b"\x00\x01 this is no HTTP\r\n\r\n\xff")
            raise Cut
        if knobs.error_status and (knobs.error_times is None or self.errors_given < knobs.error_times):
            self.errors_given += 1
            await reply.error(knobs.error_status, "fake engine error")
        elif path == "/v1/embeddings":
            await self._embed(body, reply)
        elif path in {"/v1/chat/completions", "/v1/completions"}:
            if not self.gpu.grow():
                resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
                os.abort()
            await self._complete(Answer(self.name, path.startswith("/v1/chat"), body, knobs), reply)
        else:
            await reply.error(404, "File Not Found")

    async def _embed(self, body: dict[str, Any], reply: Reply) -> None:
        if not self.settings.embeddings:
            await reply.error(501, "This server does not support embeddings. Start it with `--embeddings`")
            return
        texts = [body["input"]] if isinstance(body["input"], str) else body["input"]
        rows = [{"embedding": vector(text), "index": at, "object": "embedding"} for at, text in enumerate(texts)]
        count = sum(len(text.encode()) for text in texts)
        usage = {"prompt_tokens": count, "total_tokens": count}
        await reply.json({"model": self.name, "object": "list", "usage": usage, "data": rows})

    async def _complete(self, answer: Answer, reply: Reply) -> None:
        limit, count = self._context(answer.knobs), answer.prompt_tokens
        images = any(part.get("type") == "image_url" for part in parts_of(answer.body))
        if answer.chat and "messages" not in answer.body:
            await reply.error(400, "'messages' is required")
        elif images and not self.settings.mmproj:
            await reply.error(500, f"image input is not supported - {MMPROJ_HINT}")
        elif limit is not None and count > limit:
            text = f"request ({count} tokens) exceeds the available context size ({limit} tokens), try increasing it"
            await reply.error(400, text, type="exceed_context_size_error", n_prompt_tokens=count, n_ctx=limit)
        elif answer.knobs.bad_json:
            data = encode(answer.whole(*answer.tokens()))
            await reply.body(200, data[: len(data) // 2])
        elif answer.body.get("stream"):
            await self._stream(answer, reply)
        else:
            await self._whole(answer, reply)

    async def _whole(self, answer: Answer, reply: Reply) -> None:
        tokens, reason = answer.tokens()
        done: list[Token] = []
        try:
            async for token in self._generate(tokens, answer.knobs, reply):
                done.append(token)  # noqa: PERF401 - what there is counts when it is aborted
        except EngineError as error:
            await reply.error(500, str(error))
            return
        except Aborted:
            reason = "abort"
        await reply.json(answer.whole(done, reason))

    async def _stream(self, answer: Answer, reply: Reply) -> None:
        tokens, reason = answer.tokens()
        count = 0
        await reply.open_stream(answer.knobs.split_bytes)
        if answer.chat:
            await reply.event(answer.envelope([answer.choice({"role": "assistant", "content": None})]))
        try:
            async for field, text in self._generate(tokens, answer.knobs, reply):
                await reply.event(answer.envelope([answer.choice({field: text})]))
                count += 1
        except EngineError as error:
            await reply.event({"error": error_body(500, str(error))})
            await reply.end_stream()
            return
        except Aborted:
            reason = "abort"
        for event in answer.closing(count, reason):
            await reply.event(event)
        await reply.end_stream()

    async def _generate(self, tokens: list[Token], knobs: Knobs, reply: Reply) -> AsyncIterator[Token]:
        """The tokens in their time, until the fault that was asked for or sleep."""
        aborts = self.sleep.aborts
        for count, token in enumerate(tokens):
            await self._strike(count, knobs, reply)
            await self._pause(knobs.token_delay_s if count else knobs.first_token_delay_s, knobs, reply)
            if self.sleep.aborts > aborts:
                raise Aborted
            yield token
        await self._strike(len(tokens), knobs, reply)

    async def _strike(self, count: int, knobs: Knobs, reply: Reply) -> None:
        """Do what was asked for after `count` tokens, if anything was."""
        ends = (knobs.crash_after_tokens, knobs.exit_after_tokens, knobs.drop_after_tokens, knobs.reset_after_tokens)
        if count in ends:
            await reply.flush()
        if count == knobs.crash_after_tokens:
            os.kill(os.getpid(), signal.SIGKILL)
        if count == knobs.exit_after_tokens:
            leave(knobs.exit_code or 0)
        if count == knobs.reset_after_tokens:
            reply.reset()
        if count in ends:
            raise Cut
        if count == knobs.error_after_tokens:
            raise EngineError(f"fake engine error after {count} tokens")

    async def _pause(self, seconds: float, knobs: Knobs, reply: Reply) -> None:
        """Wait, a stream with comments; for ever when the engine hangs in its stop."""
        if self.stop.is_set() and self.settings.slow_stop_with_stream:
            await forever()
        while reply.streaming and 0 < knobs.comment_every_s < seconds:
            await asyncio.sleep(knobs.comment_every_s)
            await reply.send(b":\n\n")
            seconds -= knobs.comment_every_s
        if seconds or reply.streaming:
            await asyncio.sleep(seconds)


def heard(request: Request) -> dict[str, Any]:
    """A transcription that tells the fields of the form, and size and SHA-256 of its files."""
    head = f"Content-Type: {request.headers['content-type']}\r\n\r\n".encode()
    shown: dict[str, Any] = {}
    for part in email.message_from_bytes(head + request.body).get_payload():
        assert isinstance(part, email.message.Message)
        content = part.get_payload(decode=True)
        assert isinstance(content, bytes)
        name = str(part.get_param("name", header="content-disposition"))
        if part.get_filename() is None:
            shown[name] = content.decode()
        else:
            shown[name] = {
                "name": part.get_filename(),
                "bytes": len(content),
                "sha256": hashlib.sha256(content).hexdigest(),
            }
    return {"text": "heard", "form": shown}


def log(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


async def forever() -> None:
    await asyncio.Event().wait()


def leave(code: int) -> NoReturn:
    """Exit from anywhere, without unwinding."""
    os._exit(code)


def start_fails(settings: Settings) -> bool:
    """Whether this start is one of those that fail; counts it."""
    if settings.fail_start is None or settings.fail_start_times is None or settings.state is None:
        return settings.fail_start is not None
    with Path(settings.state).open("ab") as file:
        file.write(b".")
        return file.tell() <= settings.fail_start_times


def start_child(settings: Settings) -> subprocess.Popen[bytes]:
    return subprocess.Popen(["sleep", str(settings.max_life_s)], start_new_session=settings.child_session)


def main() -> None:
    """Start as the flags say and serve until SIGTERM."""
    settings, knobs = parse(sys.argv[1:])
    if settings.version:
        log("version: 11434 (fake)\nbuilt with Python for tests")
        return
    signal.alarm(settings.max_life_s)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if settings.starts_log:
        with Path(settings.starts_log).open("a", encoding="ascii") as file:
            file.write(f"{os.getpid()} {time.time()}\n")
    child = start_child(settings) if settings.spawn_child else None
    if settings.ignore_term:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    asyncio.run(Engine(settings, knobs, child).run(fails=start_fails(settings)))


if __name__ == "__main__":
    main()
