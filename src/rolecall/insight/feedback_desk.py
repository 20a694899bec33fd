"""Takes feedback in, for requests that there were and that are the caller's own."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections import OrderedDict, deque
from collections.abc import Iterable
from contextlib import ExitStack, suppress

from starlette.requests import Request

from rolecall.errors import Conflict, NotFound, TooManyRequests, Unavailable
from rolecall.gateway.body import parse_json, receive_body
from rolecall.gateway.caller import Caller, caller_of
from rolecall.gateway.recorder import encode, timestamp
from rolecall.gateway.rotating_file import RotatingFile, reason
from rolecall.gateway.routes import Json
from rolecall.gateway.server import Gateway
from rolecall.insight.feedback import Feedback, feedback_path, read_feedback
from rolecall.insight.line_search import find_line
from rolecall.insight.log_files import open_log
from rolecall.insight.log_reader import Fields, Part, open_parts

log = logging.getLogger(__name__)

PROBLEM = "feedback"
"""What it is called among the problems of the server."""
_MOST_BODY_BYTES = 2**15
"""A comment of the longest kind has 24,000 where each character is written as two escapes of six."""
_MOST_WAITING = 16
"""Searches that may wait for the one that goes on; each reads the log, at the worst all of it."""
_REMEMBERED = 1000
_ID = re.compile("req_[0-9a-f]{32}")
_WRITTEN_WITHIN_S = 0.15
"""A line is in the file so long after its answer's last byte."""


class Desk:
    """Takes feedback in: it is on the disk when the answer says so, and the same once more is not written again."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        settings = gateway.services.settings
        self._path = gateway.services.recorder.path
        self._file = RotatingFile(feedback_path(self._path), settings.max_log_bytes, settings.log_backups)
        self._last: OrderedDict[str, Feedback] = OrderedDict()
        self._search = asyncio.Lock()
        self._writing = asyncio.Lock()
        self._searching = 0

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    async def post(self, request: Request) -> Json:
        """Return the feedback as it is kept, and what it is about."""
        caller = caller_of(request.scope)
        caller.begin()
        headers = dict(request.scope["headers"])
        raw = await receive_body(headers, request.receive, _MOST_BODY_BYTES, setting=None)
        given = read_feedback(parse_json(raw))
        line = await self._line(given.request_id, caller)
        if line is None:
            raise self._unknown(given.request_id)
        async with self._writing:
            is_new = self._last.get(given.request_id) != given
            if is_new:
                await self._write(given, caller)
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

    async def _write(self, given: Feedback, caller: Caller) -> None:
        lines = deque([encode({"ts": timestamp(time.time()), **given.as_dict(), "key": caller.name})])
        problems = self._gateway.services.additions
        try:
            await asyncio.to_thread(self._file.append, lines)
        except OSError as error:
            if problems.get(PROBLEM) is None:
                log.warning("feedback cannot be written: %s", reason(error))
            problems[PROBLEM] = f"feedback of {timestamp(time.time())} could not be written: {reason(error)}"
            raise Unavailable(f"The feedback cannot be written: {reason(error)}. It is not kept.") from None
        problems[PROBLEM] = None
        self._last[given.request_id] = given
        self._last.move_to_end(given.request_id)
        if len(self._last) > _REMEMBERED:
            self._last.popitem(last=False)

    async def _line(self, request_id: str, caller: Caller) -> Fields | None:
        """Return the request's line, None if there is none that is the caller's; one search at a time."""
        if not _ID.fullmatch(request_id):
            return None
        if any(exchange.request_id == request_id for exchange in self._gateway.inference.active):
            raise Conflict("That request is still being answered; send the feedback when its answer is complete.")
        if self._searching >= _MOST_WAITING:
            raise TooManyRequests("Too much feedback waits to be looked up; send it again.", retry_after_s=1)
        self._searching += 1
        try:
            async with self._search:
                found = await asyncio.to_thread(self._find, request_id, caller)
                if found is None:
                    await asyncio.sleep(_WRITTEN_WITHIN_S)
                    found = await asyncio.to_thread(self._find, request_id, caller, only_newest=True)
                return found
        except OSError as error:
            raise Unavailable(f"The request cannot be looked up in the log: {reason(error)}.") from None
        finally:
            self._searching -= 1

    def _find(self, request_id: str, caller: Caller, *, only_newest: bool = False) -> Fields | None:
        """Look for a request; one of another key takes as long as one that there is not."""
        with ExitStack() as stack:
            parts: Iterable[Part] = ()
            if only_newest:
                parts = open_parts(self._path, stack)[:2]  # it may have been rotated since
            else:
                with suppress(FileNotFoundError):
                    parts = open_log(self._path, stack).files
            return find_line(parts, request_id, lambda line: caller.may("admin") or line.get("key") == caller.name)
