"""The answer as the client gets it: whole, streamed, or broken off so that nobody takes it for a whole one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import anyio
import orjson

from rolecall.core.endpoints import CHAT
from rolecall.core.error_shapes import error_body, error_event
from rolecall.errors import BodyTooLarge, DiskFull, RolecallError
from rolecall.gateway.body import ClientGone
from rolecall.gateway.wire import Wire

EVENT_STREAM = "text/event-stream"
_EVENT_ENDS = (b"\n\n", b"\r\n\r\n", b"\r\r")


class Reply:
    """Sends one answer. ``patience_s`` is how long a client may take nothing of it before it counts as gone,
    ``endpoint`` whose clients' form errors have.

    ``has_head`` says that status and headers are out, ``has_started`` that they are those of the answer: the head of a
    stream may be promised before there is one; ``promised`` are the headers that it had then.
    """

    def __init__(self, wire: Wire, request_id: str, patience_s: float, endpoint: str = CHAT) -> None:
        self.has_head = False
        self.has_started = False
        self.is_complete = False
        self.promised: Mapping[str, str] | None = None
        self.bytes_out = 0
        self.patience_s = patience_s
        self._wire = wire
        self._request_id = request_id
        self._endpoint = endpoint
        self._has_events = False
        self._last = b""

    async def promise(self, headers: Mapping[str, str]) -> None:
        """Send the head of a stream to a client that has to wait for the answer, with status 200 whatever comes."""
        self.promised = headers
        await self._head(200, headers)

    async def start(self, status: int, headers: Mapping[str, str]) -> None:
        """Send the head, unless it was promised."""
        self.has_started = True
        if not self.has_head:
            await self._head(status, headers)

    async def _head(self, status: int, headers: Mapping[str, str]) -> None:
        self._has_events = headers.get("content-type", "").startswith(EVENT_STREAM)
        self.has_head = True
        if not self._wire.head(status, {**headers, "x-request-id": self._request_id}):
            await self.drain()

    def part(self, data: bytes) -> bool:
        """Send a part of the body; return whether the client takes more at once. If not, ``drain`` before the next."""
        self.bytes_out += len(data)
        self._last = data
        return self._wire.part(data)

    async def drain(self) -> None:
        """Wait until the client takes more; raises ``ClientGone`` if it does not."""
        with anyio.move_on_after(self.patience_s) as patience:
            await self._wire.drain()
        if patience.cancelled_caught:
            raise ClientGone(f"the client took nothing of the answer for {self.patience_s:g} s")

    async def body(self, data: bytes, *, more: bool = True) -> None:
        """Send a part of the body, the last one with ``more`` False; raises ``ClientGone`` if it is not taken."""
        self.bytes_out += len(data)
        self._last = data
        takes_more = self._wire.part(data) if more else self._wire.end(data)
        self.is_complete = not more
        if not takes_more:
            await self.drain()

    async def whole(self, status: int, headers: Mapping[str, str], data: bytes) -> None:
        """Send a whole answer; raises ``ClientGone`` if it is not taken."""
        self.has_started = self.has_head = True
        self.bytes_out += len(data)
        told = {**headers, "x-request-id": self._request_id, "content-length": str(len(data))}
        takes_more = self._wire.whole(status, told, data)
        self.is_complete = True
        if not takes_more:
            await self.drain()

    async def fail(self, error: RolecallError, told: Mapping[str, str] | None = None) -> None:
        """Send an error: as the answer, with what the headers ``told`` tell, or in a stream as ``break_off`` does."""
        if self.has_head:
            await self.break_off(error)
            return
        headers = {"content-type": "application/json", **(told or {}), **error.headers()}
        if isinstance(error, BodyTooLarge | DiskFull):  # what is left of the body may be taken for the next request
            headers["connection"] = "close"
        await self.whole(error.status, headers, orjson.dumps(error_body(self._endpoint, error)))

    async def break_off(self, error: RolecallError) -> None:
        """End a stream with an error as its last event, unless it is complete; any other answer as it is.

        It is not ended properly: the server then closes the connection without the last chunk, and no client can take
        the answer for a whole one. Raises ``ClientGone`` as ``body`` does.
        """
        if not self.is_complete and self._has_events:  # within sound or subtitles an error would be part of them
            # An event that the engine left unfinished is ended, so that ours is one of its own.
            is_within_event = bool(self._last) and not self._last.endswith(_EVENT_ENDS)
            await self.body((b"\n\n" if is_within_event else b"") + error_event(self._endpoint, error))


def as_stream(answer: Any) -> bytes | None:
    """Return a whole chat answer or completion as a stream of one chunk; None for anything else."""
    choices = answer.get("choices") if isinstance(answer, dict) else None
    if not isinstance(choices, list) or not all(isinstance(choice, dict) for choice in choices):
        return None
    chunk = {**answer, "choices": [_as_delta(choice) for choice in choices]}
    if chunk.get("object") == "chat.completion":
        chunk["object"] = "chat.completion.chunk"
    return b"data: " + orjson.dumps(chunk) + b"\n\ndata: [DONE]\n\n"


def _as_delta(choice: Mapping[str, Any]) -> dict[str, Any]:
    rest = {name: value for name, value in choice.items() if name != "message"}
    message = choice.get("message")
    if not isinstance(message, dict):
        return rest
    calls = message.get("tool_calls")
    if isinstance(calls, list):  # in a stream each says which one it is
        numbered = [{"index": at, **call} for at, call in enumerate(calls) if isinstance(call, dict)]
        message = {**message, "tool_calls": numbered}
    return {**rest, "delta": message}
