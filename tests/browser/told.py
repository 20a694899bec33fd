"""A server that tells the dashboard what a test says, in the words of docs/dashboard-api.md; with the real pages.

For what a real rolecall shows only by luck: many models, long and hostile names, a server that goes away. What the
endpoints really answer is tested with a real one.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from rolecall.pages.files import page_routes


def ago(seconds: float) -> str:
    """Return a time in the past as the server writes it."""
    moment = datetime.now(timezone.utc) - timedelta(seconds=seconds)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def model(name: str, state: str = "stopped", **fields: Any) -> dict[str, Any]:
    """Return the row of a model."""
    is_up = state in {"ready", "starting"}
    row = {
        "model": name,
        "display_name": None,
        "backend": "llama_cpp",
        "roles": {"chat": 50},
        "capabilities": ["text"],
        "managed": True,
        "installed": True,
        "pinned": False,
        "state": state,
        "sleep_level": None,
        "reduced": None,
        "in_flight": 0,
        "waiting": 0,
        "devices": [{"index": 0, "uuid": "GPU-0"}] if is_up else [],
        "vram_reserved_mb": 0,
        "footprint_mb": 6000,
        "footprint_source": "learnt",
        "rss_mb": 900 if is_up else None,
        "pid": None,
        "port": None,
        "ready_since": None,
        "load_s": 12.0,
        "load_fraction": None,
        "load_eta_s": None,
        "failures": 0,
        "retry_at": None,
        "error": None,
    }
    assert fields.keys() <= row.keys()
    return {**row, **fields}


def gpu(index: int = 0, total_mb: int = 24564, foreign_mb: int = 800, **held: int) -> dict[str, Any]:
    """Return the row of a GPU; ``held`` is how much each model holds (MB)."""
    return gpu_of(list(held.items()), index, total_mb, foreign_mb)


def gpu_of(
    held: Sequence[tuple[str, int]], index: int = 0, total_mb: int = 24564, foreign_mb: int = 800
) -> dict[str, Any]:
    """Return the row of a GPU and what each model holds of it (MB)."""
    reserved = sum(mb for _, mb in held)
    return {
        "index": index,
        "uuid": f"GPU-{index}",
        "name": "NVIDIA GeForce RTX 4090",
        "total_mb": total_mb,
        "usable_mb": total_mb - 2000,
        "reserved_mb": reserved,
        "foreign_mb": foreign_mb,
        "free_mb": max(0, total_mb - reserved - foreign_mb),
        "models": [{"model": name, "mb": mb} for name, mb in held],
    }


def live_row(number: int, model_name: str, **fields: Any) -> dict[str, Any]:
    """Return the row of a request that is being served."""
    row = {
        "request_id": f"req_live{number}",
        "endpoint": "/v1/chat/completions",
        "model": model_name,
        "requested_model": model_name,
        "role": None,
        "key": None,
        "client": "127.0.0.1 python-httpx",
        "stream": True,
        "images": 0,
        "started": ago(4),
        "state": "answering",
        "ttft_ms": 210.5,
        "tokens": 87,
        "tokens_estimated": True,
        "tokens_per_second": 41.2,
    }
    return {**row, **fields}


def line(number: int, model_name: str, **fields: Any) -> dict[str, Any]:
    """Return the line of a request that is over."""
    row = {
        "ts": ago(5 * number + 1),
        "request_id": f"req_{number:04}",
        "endpoint": "/v1/chat/completions",
        "client": "127.0.0.1 python-httpx",
        "key": None,
        "requested_model": model_name,
        "role": None,
        "model": model_name,
        "backend": "llama_cpp",
        "profile": "workstation",
        "stream": True,
        "status": 200,
        "error": None,
        "messages": 1,
        "images": 0,
        "prompt_tokens": 120 + number,
        "completion_tokens": 80 + number,
        "finish_reason": "stop",
        "queue_ms": 0.4,
        "load_ms": 0.0,
        "ttft_ms": 180.0 + number,
        "duration_ms": 1900.0 + 10 * number,
        "tokens_per_second": 44.1,
    }
    return {**row, **fields}


def entry(
    seconds_ago: float, name: str, event: str, seconds: float | None = None, reason: str | None = None
) -> dict[str, Any]:
    """Return an entry of the timeline."""
    return {"ts": ago(seconds_ago), "model": name, "event": event, "seconds": seconds, "reason": reason, "cause": None}


TOTALS = {
    "requests": 0,
    "errors": 0,
    "prompt_tokens": 0,
    "completion_tokens": 0,
    "loads": 0,
    "evictions": 0,
    "log_lines_dropped": 0,
}


def snapshot(**sections: Any) -> dict[str, Any]:
    """Return a snapshot of a server that has nothing, but for these sections; lists stand for queue and live too."""
    server = {
        "version": "0.1.0",
        "profile": "workstation",
        "started_at": ago(7500),
        "keys": False,
        "log_prompts": False,
        "max_image_bytes": 9_000_000,
        "budget_mb": 22528,
        "max_models": 4,
        "problems": {},
    }
    found = {"gpus": [gpu()], "models": [], "queue": [], "live": [], "history": [], "timeline": [], **sections}
    queue, live = found["queue"], found["live"]
    return {
        "type": "snapshot",
        "ts": ago(0),
        **found,
        "server": {**server, **sections.get("server", {})},
        "queue": {"waiting": len(queue), "data": queue},
        "live": {"active": len(live), "data": live},
        "totals": {**TOTALS, **sections.get("totals", {})},
    }


class Told:
    """Answers the dashboard; ``tell`` sends an event to all who watch, ``posts`` are what they did."""

    def __init__(self, first: Mapping[str, Any]) -> None:
        self.first = dict(first)
        self.posts: list[str] = []
        self.asked: list[str] = []
        self.looked_up: list[str] = []
        self.reading = 0
        self.most_reading = 0
        self.connections = 0
        self.is_slow = False
        self.let_go: list[str] = []
        self.refusal: tuple[int, str] | None = None
        self.output: list[str] = ["main: loading model", "main: server is listening"]
        self.decision: dict[str, Any] | None = None
        self.answer = ""
        self._queues: set[asyncio.Queue[str | None]] = set()
        self._loop: asyncio.AbstractEventLoop | None = None

    def tell(self, event: Mapping[str, Any]) -> None:
        """Send an event."""
        text = json.dumps({"ts": ago(0), **event})
        assert self._loop is not None
        for queue in list(self._queues):
            self._loop.call_soon_threadsafe(queue.put_nowait, text)

    def hang_up(self) -> None:
        """End all streams."""
        for queue in list(self._queues):
            assert self._loop is not None
            self._loop.call_soon_threadsafe(queue.put_nowait, None)

    @property
    def watchers(self) -> int:
        """How many streams are open."""
        return len(self._queues)

    def app(self) -> Starlette:
        """Return the application."""
        return Starlette(
            routes=[
                *page_routes(),
                Route("/v1/events", self._events),
                Route("/v1/requests", self._requests),
                Route("/v1/requests/{id}", self._request),
                Route("/v1/models/{id:path}/output", self._output),
                Route("/{path:path}", self._post, methods=["POST"]),
            ]
        )

    async def _events(self, _request: Request) -> Response:
        self.connections += 1
        if self.refusal is not None:
            status, words = self.refusal
            return JSONResponse({"error": {"message": words}}, status)
        self._loop = asyncio.get_running_loop()
        queue: asyncio.Queue[str | None] = asyncio.Queue()
        self._queues.add(queue)

        async def body() -> AsyncIterator[str]:
            try:
                yield _event(json.dumps({**self.first, "ts": ago(0)}))
                while (text := await queue.get()) is not None:
                    yield _event(text)
            finally:
                self._queues.discard(queue)

        return StreamingResponse(body(), media_type="text/event-stream")

    async def _requests(self, request: Request) -> Response:
        self.asked.append(str(request.url.query))
        self.reading += 1
        self.most_reading = max(self.most_reading, self.reading)
        await asyncio.sleep(0.05)
        self.reading -= 1
        query = request.query_params
        data = self.first["history"][::-1]
        ids = [each["request_id"] for each in data]
        start = ids.index(query["before"]) + 1 if "before" in query else 0
        end = start + int(query["limit"])
        following = ids[end - 1] if end < len(ids) else None
        told = {"object": "list", "data": data[start:end], "next": following, "searched_to": ago(999), "skipped": 0}
        return JSONResponse(told)

    async def _request(self, request: Request) -> Response:
        self.looked_up.append(request.path_params["id"])
        found = next((each for each in self.first["history"] if each["request_id"] == request.path_params["id"]), None)
        if found is None:
            return JSONResponse({"error": {"message": "There is no such request."}}, 404)
        return JSONResponse(
            {"request_id": found["request_id"], "state": "finished", "line": found, "decision": self.decision}
        )

    async def _output(self, request: Request) -> Response:
        name = request.path_params["id"]
        told = {"type": "output", "ts": ago(0), "model": name, "lines": self.output, "skipped": 0}

        async def body() -> AsyncIterator[str]:
            yield _event(json.dumps(told))
            await asyncio.sleep(60)

        return StreamingResponse(body(), media_type="text/event-stream")

    async def _post(self, request: Request) -> Response:
        path = "/" + request.path_params["path"]
        self.posts.append(path)
        while self.is_slow:
            await asyncio.sleep(0.02)
            if await request.is_disconnected():
                self.let_go.append(path)
                break
        if path != "/v1/chat/completions":
            return JSONResponse({})
        return StreamingResponse(
            self._said(), media_type="text/event-stream", headers={"x-rolecall-model": "qwen3-vl-8b"}
        )

    async def _said(self) -> AsyncIterator[str]:
        for word in self.answer.split():
            await asyncio.sleep(0.02)
            yield f"data: {json.dumps({'choices': [{'delta': {'content': word + ' '}}]})}\n\n"
        usage = {"prompt_tokens": 24, "completion_tokens": len(self.answer.split())}
        yield f"data: {json.dumps({'choices': [], 'usage': usage})}\n\ndata: [DONE]\n\n"


def _event(text: str) -> str:
    return f"event: {json.loads(text)['type']}\ndata: {text}\n\n"


@contextmanager
def telling(told: Told, port: int = 0) -> Iterator[str]:
    """Serve it; the address is yielded."""
    with serving(told.app(), port) as address:
        try:
            yield address
        finally:
            told.hang_up()


@contextmanager
def serving(app: Starlette, port: int = 0) -> Iterator[str]:
    """Serve an application from a thread; the address is yielded."""
    config = uvicorn.Config(app, port=port, log_level="error", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 20
    while not server.started:
        assert time.monotonic() < deadline, "it does not start"
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)
