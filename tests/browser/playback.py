"""What a rolecall told those who watch it, and a server that tells it again, with the real pages.

Browsers that look at it have as much to do as with the rolecall that it was recorded from, which has none of it then.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import httpx
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from rolecall.pages.files import page_routes


@dataclass
class Recording:
    """Parts of the stream of events and when each came (s, of ``time.monotonic``), and the newest requests."""

    parts: list[tuple[float, bytes]] = field(default_factory=list)
    began: float = 0.0
    requests: bytes = b""


@contextmanager
def recording(address: str) -> Iterator[Recording]:
    """Record what is told while the block lasts; it begins once there is a snapshot."""
    found, has_begun, is_over = Recording(), threading.Event(), threading.Event()

    def listen() -> None:
        with httpx.stream("GET", f"{address}/v1/events", timeout=30) as answer:
            for part in answer.iter_raw():
                found.parts.append((time.monotonic(), part))
                has_begun.set()
                if is_over.is_set():
                    return

    thread = threading.Thread(target=listen, daemon=True)
    thread.start()
    has_begun.wait(30)
    found.began = time.monotonic()
    yield found
    found.requests = httpx.get(f"{address}/v1/requests").content
    is_over.set()  # something is told a last time: heartbeats at the latest
    thread.join(30)


class Playback:
    """Tells a recording: the snapshot at once, and the rest from ``play`` on as it came."""

    def __init__(self, recorded: Recording) -> None:
        self._recorded = recorded
        self._began = float("inf")

    def play(self) -> None:
        """Begin, for all who watch."""
        self._began = time.monotonic()

    def stop(self) -> None:
        """Go back to the beginning, for those who will watch."""
        self._began = float("inf")

    def app(self) -> Starlette:
        """Return the application."""
        return Starlette(routes=[*page_routes(), Route("/v1/events", self._events), Route("/v1/requests", self._page)])

    async def _events(self, _request: Request) -> Response:
        return StreamingResponse(self._parts(), media_type="text/event-stream")

    async def _parts(self) -> AsyncIterator[bytes]:
        for at, part in self._recorded.parts:
            after_s = max(0.0, at - self._recorded.began)
            while after_s and time.monotonic() < self._began + after_s:  # noqa: ASYNC110 - another thread has it begin
                await asyncio.sleep(0.01)
            yield part
        await asyncio.sleep(3600)

    async def _page(self, _request: Request) -> Response:
        return Response(self._recorded.requests, media_type="application/json")
