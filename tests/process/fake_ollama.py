"""A stand-in for Ollama: its documented HTTP API over a real socket, with models that load, expire and are evicted.

    with FakeOllama("llama3.2:latest", "nomic-embed-text:latest") as ollama:
        httpx.get(ollama.base_url + "/api/ps")

As documented (docs/api.md, docs/faq.mdx) and as its scheduler does (server/sched.go): a name without a tag means
``:latest``; an empty request loads; ``keep_alive`` belongs to the loaded model, a request without one leaves it as it
is and starts its time anew; 0 unloads once nothing is in flight; other ``num_ctx`` load the model again; what is not
pulled is 404. Knowingly different: answers are always the same words, and memory is one number for each model.
"""

from __future__ import annotations

import json
import re
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from typing_extensions import Self

MB = 2**20
DEFAULT_KEEP_ALIVE_S = 300.0
_UNITS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600}


@dataclass
class Loaded:
    """A model in memory; ``keep_alive_s`` is None for one that stays."""

    keep_alive_s: float | None
    num_ctx: int
    since: float = field(default_factory=time.monotonic)
    in_flight: int = 0

    @property
    def is_expired(self) -> bool:
        """Whether its time is over and nobody needs it."""
        return (
            not self.in_flight and self.keep_alive_s is not None and time.monotonic() >= self.since + self.keep_alive_s
        )


class FakeOllama:
    """The daemon. ``pulled`` are its models, with tags; the rest may be set at any time.

    ``listed`` are further fields of a model in ``/api/tags``, ``shown`` is what ``/api/show`` tells of it.
    """

    def __init__(self, *pulled: str, embedders: tuple[str, ...] = ()) -> None:
        self.pulled = (*pulled, *embedders)
        self.embedders = embedders
        self.load_s = 0.0
        self.unload_s = 0.0
        self.load_error: str | None = None
        self.key: str | None = None
        self.listed: dict[str, dict[str, Any]] = {}
        self.shown: dict[str, dict[str, Any]] = {}
        self.size_mb, self.vram_mb = 3000, 2500
        self.keep_alive_s = DEFAULT_KEEP_ALIVE_S
        self.loads: list[str] = []
        self.seen: list[tuple[str, Any]] = []
        self.loaded: dict[str, Loaded] = {}
        self.lock = threading.RLock()
        self._server: ThreadingHTTPServer | None = None
        self.port = 0

    @property
    def base_url(self) -> str:
        """Its address, without a path."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def is_running(self) -> bool:
        """Whether it serves."""
        return self._server is not None

    def __enter__(self) -> Self:
        """Serve, on the same port again after a stop."""
        handler = type("Handler", (_Handler,), {"ollama": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), handler)
        self._server.daemon_threads = True
        self.port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop listening, and forget what was loaded."""
        if self._server:
            self._server.shutdown()
            self._server.server_close()
            self._server = None
        self.loaded.clear()

    def evict(self, tag: str) -> None:
        """Unload a model on its own account, as for the room of another one."""
        with self.lock:
            self.loaded.pop(tag, None)

    def sweep(self) -> None:
        """Unload what has expired."""
        with self.lock:
            for tag in [tag for tag, model in self.loaded.items() if model.is_expired]:
                del self.loaded[tag]

    def find(self, name: str) -> str | None:
        """Return the pulled model of a name with or without a tag."""
        full = (name if ":" in name else f"{name}:latest").lower()
        return next((tag for tag in self.pulled if tag.lower() == full), None)

    def load(self, tag: str, keep_alive: Any, num_ctx: int | None) -> None:
        """Make sure that a model is in memory, and set how long it stays."""
        with self.lock:
            model = self.loaded.get(tag)
            if model is None or model.num_ctx != (num_ctx or 4096):
                self.loads.append(tag)
                self.loaded.pop(tag, None)
        if model is None or tag not in self.loaded:
            time.sleep(self.load_s)
            with self.lock:
                self.loaded[tag] = model = Loaded(self.keep_alive_s, num_ctx or 4096)
        model.since = time.monotonic()
        if keep_alive is not None:
            model.keep_alive_s = duration_s(keep_alive)

    def unload(self, tag: str) -> None:
        """Let a model's time be over; it is gone after ``unload_s``, once nothing is in flight."""
        with self.lock:
            if model := self.loaded.get(tag):
                model.keep_alive_s = self.unload_s
                self.unload_s = 0.0

    def running(self) -> list[dict[str, Any]]:
        """What ``/api/ps`` lists."""
        self.sweep()
        with self.lock:
            return [
                {
                    "name": tag,
                    "model": tag,
                    "size": self.size_mb * MB,
                    "size_vram": self.vram_mb * MB,
                    "digest": "0" * 64,
                    "details": {"format": "gguf"},
                    "expires_at": "2318-01-01T00:00:00Z" if model.keep_alive_s is None else "2026-01-01T00:05:00Z",
                    "context_length": model.num_ctx,
                }
                for tag, model in self.loaded.items()
            ]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    ollama: FakeOllama

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def parse_request(self) -> bool:
        """Read a request; the end of the daemon ends its connections, too."""
        is_read = super().parse_request()
        self.close_connection = self.close_connection or not self.ollama.is_running
        return is_read and self.ollama.is_running

    def _is_shown_the_key(self) -> bool:
        """Whether it may be answered, as by a proxy in front of the daemon."""
        if self.ollama.key is None or self.headers["Authorization"] == f"Bearer {self.ollama.key}":
            return True
        self._refuse("unauthorized", 401)
        return False

    def do_GET(self) -> None:
        """Answer what only looks."""
        if not self._is_shown_the_key():
            return
        models: list[dict[str, Any]] = [
            {"name": tag, "model": tag, "size": self.ollama.size_mb * MB, **self.ollama.listed.get(tag, {})}
            for tag in self.ollama.pulled
        ]
        known = {"/api/version": {"version": "0.40.12"}, "/api/tags": {"models": models}}
        known["/api/ps"] = {"models": self.ollama.running()}
        known["/v1/models"] = {"object": "list", "data": [{"id": tag, "object": "model"} for tag in self.ollama.pulled]}
        self._send(known.get(self.path, {"error": "not found"}), 200 if self.path in known else 404)

    def do_POST(self) -> None:
        """Answer what loads, unloads and generates."""
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not self._is_shown_the_key():
            return
        self.ollama.seen.append((self.path, body))
        tag = self.ollama.find(body["model"])
        if tag is None:
            self._refuse(f"model '{body['model']}' not found", 404)
        elif self.path == "/api/show":
            self._send(self.ollama.shown.get(tag, {}))
        elif self.path == "/api/generate" and not body.get("prompt") and duration_s(body.get("keep_alive", -1)) == 0:
            self.ollama.unload(tag)
            self._send({"model": tag, "response": "", "done": True, "done_reason": "unload"})
        elif self.path == "/api/generate" and tag in self.ollama.embedders:
            self._refuse(f'"{body["model"]}" does not support generate', 400)
        elif self.ollama.load_error:
            self._refuse(self.ollama.load_error, 500)
        else:
            is_native = self.path.startswith("/api/")
            options = body.get("options") or {}
            self.ollama.load(
                tag, body.get("keep_alive") if is_native else None, options.get("num_ctx") if is_native else None
            )
            self._send(_answer(self.path, tag))

    def _refuse(self, message: str, status: int) -> None:
        is_native = self.path.startswith("/api/")
        self._send({"error": message if is_native else {"message": message, "type": "api_error"}}, status)

    def _send(self, value: Any, status: int = 200) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def _answer(path: str, tag: str) -> dict[str, Any]:
    if path == "/api/generate":
        return {"model": tag, "response": "", "done": True, "done_reason": "load"}
    if path == "/api/embed":
        return {"model": tag, "embeddings": []}
    message = {"role": "assistant", "content": "Hello from Ollama."}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    usage = {"prompt_tokens": 5, "completion_tokens": 4, "total_tokens": 9}
    return {"id": "chatcmpl-1", "object": "chat.completion", "model": tag, "choices": [choice], "usage": usage}


def duration_s(value: Any) -> float | None:
    """Return the seconds of a ``keep_alive``: a number or a string such as ``5m``; None for one that is negative."""
    if isinstance(value, str) and (found := re.fullmatch(r"(-?[\d.]+)(ms|s|m|h)?", value)):
        value = float(found[1]) * _UNITS[found[2] or "s"]
    return None if value < 0 else float(value)
