"""Takes feedback in, for requests that there were and that are the caller's own."""

from __future__ import annotations

import asyncio
import re
import time
from collections import OrderedDict
from contextlib import ExitStack
from typing import Any

import orjson
from starlette.requests import Request

from rolecall.errors import Conflict, NotFound, TooManyRequests, Unavailable
from rolecall.gateway.body import parse_json, receive_body
from rolecall.gateway.caller import Caller, caller_of
from rolecall.gateway.recorder import Recorder, timestamp
from rolecall.gateway.routes import Json
from rolecall.gateway.server import Gateway
from rolecall.insight.feedback import Feedback, feedback_path, read_feedback
from rolecall.insight.log_reader import Part, lines_backwards, open_parts

_MOST_BODY_BYTES = 2**14
_MOST_WAITING = 16
"""Searches that may wait for the one that goes on; each reads the log, at the worst all of it."""
_REMEMBERED = 1000
_ID = re.compile("req_[0-9a-f]{32}")
_BLOCK = 2**20
_WRITTEN_WITHIN_S = 0.15
"""A line is in the file so long after its answer's last byte."""


class Desk:
    """Takes feedback in: of one request the last counts, and the same once more is not written again."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._recorder: Recorder | None = None
        self._last: OrderedDict[str, Feedback] = OrderedDict()
        self._search = asyncio.Lock()
        self._searching = 0

    async def close(self) -> None:
        """Write what waits."""
        if self._recorder is not None:
            await asyncio.to_thread(self._recorder.close)

    async def post(self, request: Request) -> Json:
        """Return the feedback as it is kept, and what it is about."""
        caller = caller_of(request.scope)
        caller.begin()
        raw = await receive_body(dict(request.scope["headers"]), request.receive, _MOST_BODY_BYTES)
        given = read_feedback(parse_json(raw))
        line = await self._line(given.request_id)
        if line is None or not _is_own(line, caller):
            raise self._unknown(given.request_id)
        is_new = self._last.get(given.request_id) != given
        if is_new:
            self._write(given, caller)
        about = {name: line.get(name) for name in ("model", "prompt_id", "experiment", "variant")}
        return Json({**given.as_dict(), "about": about, "recorded": is_new})

    def _unknown(self, request_id: str) -> NotFound | Unavailable:
        """Return the error; a request of another key is told from one that there is not by nobody."""
        if (problem := self._gateway.services.recorder.problem) is not None:
            return Unavailable(f"The request may be one of those whose lines are not on the disk yet: {problem}")
        return NotFound(
            f"There is no request {request_id[:100]!r} of yours in the log. The id is the header x-request-id of the "
            "answer; requests whose lines were rotated away are not known any more.",
            param="request_id",
        )

    def _write(self, given: Feedback, caller: Caller) -> None:
        if self._recorder is None:
            settings = self._gateway.services.settings
            self._recorder = Recorder(feedback_path(settings.log_path), settings.max_log_bytes, settings.log_backups)
        self._recorder.record({"ts": timestamp(time.time()), **given.as_dict(), "key": caller.name})
        self._last[given.request_id] = given
        self._last.move_to_end(given.request_id)
        if len(self._last) > _REMEMBERED:
            self._last.popitem(last=False)

    async def _line(self, request_id: str) -> dict[str, Any] | None:
        """Return the request's line, None if there is none; one search at a time."""
        if not _ID.fullmatch(request_id):
            return None
        if any(exchange.request_id == request_id for exchange in self._gateway.inference.active):
            raise Conflict("That request is still being answered; send the feedback when its answer is complete.")
        if self._searching >= _MOST_WAITING:
            raise TooManyRequests("Too much feedback waits to be looked up; send it again.", retry_after_s=1)
        self._searching += 1
        try:
            async with self._search:
                found = await asyncio.to_thread(self._find, request_id)
                if found is None:
                    await asyncio.sleep(_WRITTEN_WITHIN_S)
                    found = await asyncio.to_thread(self._find, request_id, only_newest=True)
                return found
        finally:
            self._searching -= 1

    def _find(self, request_id: str, *, only_newest: bool = False) -> dict[str, Any] | None:
        with ExitStack() as stack:
            parts = open_parts(self._gateway.services.recorder.path, stack)
            return find_line(parts[:1] if only_newest else parts, request_id)


def find_line(parts: list[Part], request_id: str) -> dict[str, Any] | None:
    """Return the newest line of a request, None if there is none.

    It looks for the bytes of the id, a block at a time: a hundred megabytes take a tenth of a second, and other threads
    get their turn.
    """
    needle = b'"request_id":"' + request_id.encode() + b'"'
    for part in parts:
        end = part.end
        while end > 0:
            start = max(0, end - _BLOCK)
            part.file.seek(start)
            block = part.file.read(end - start + len(needle))
            found = block.rfind(needle)
            while found >= 0:
                line = _line_at(part, start + found)
                if line is not None and line.get("request_id") == request_id:
                    return line
                found = block.rfind(needle, 0, found)  # that was in an object within a prompt
            end = start
    return None


def _line_at(part: Part, position: int) -> dict[str, Any] | None:
    """Return the line around a position, None if it is no whole one."""
    part.file.seek(position)
    end = position
    while block := part.file.read(_BLOCK):
        if (newline := block.find(b"\n")) >= 0:
            try:
                line = orjson.loads(next(lines_backwards(part.file, end + newline)))
            except orjson.JSONDecodeError:
                return None
            return line if isinstance(line, dict) else None
        end += len(block)
    return None


def _is_own(line: dict[str, Any], caller: Caller) -> bool:
    return caller.may("admin") or line.get("key") == caller.name
