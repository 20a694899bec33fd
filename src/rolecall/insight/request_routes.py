"""The endpoints about requests: those that are over, one in full, and the end of one by hand.

What reads the log is imported with the first question: a server that nobody asks is no larger for it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, TypeVar

from starlette.requests import Request

from rolecall.core.selection import Selection
from rolecall.errors import BadRequest, NotFound
from rolecall.gateway.caller import caller_of
from rolecall.gateway.exchange import Exchange
from rolecall.gateway.query import read_number
from rolecall.gateway.routes import Json, ScopedRoute
from rolecall.gateway.server import Gateway
from rolecall.insight.feed import Feed, without_prompts

if TYPE_CHECKING:
    from rolecall.insight.history import Question
    from rolecall.insight.log_reader import Fields

T = TypeVar("T")

DEFAULT_LIMIT, MAX_LIMIT = 50, 500
_AT_A_TIME = 2
"""Threads that read the log."""
_LONGEST = 300


class RequestRoutes:
    """Answers them for one gateway."""

    def __init__(self, gateway: Gateway, feed: Feed) -> None:
        self._gateway = gateway
        self._feed = feed
        self._turns = asyncio.Semaphore(_AT_A_TIME)

    def routes(self) -> list[ScopedRoute]:
        """Return the routes."""
        one = "/v1/requests/{request_id}"
        return [
            ScopedRoute("/v1/requests", self.page, methods=["GET"], need="admin"),
            ScopedRoute(one, self.one, methods=["GET"], need="admin"),
            ScopedRoute(f"{one}/cancel", self.cancel, methods=["POST"], need="admin"),
        ]

    async def page(self, request: Request) -> Json:
        """Return finished requests, newest first."""
        from rolecall.insight.history import read_page  # noqa: PLC0415

        question = _question(request)
        page = await self._aside(lambda: read_page(self._gateway.services.recorder.path, question))
        return Json(
            {
                "object": "list",
                "data": [without_prompts(line) for line in page.lines],
                "next": page.next,
                "searched_to": page.searched_to,
                "skipped": page.skipped,
            }
        )

    async def _aside(self, work: Callable[[], T]) -> T:
        async with self._turns:
            return await asyncio.to_thread(work)

    async def one(self, request: Request) -> Json:
        """Return one request, live or over."""
        from rolecall.insight.history import decision  # noqa: PLC0415

        request_id = request.path_params["request_id"]
        live = self._live(request_id)
        state = "finished" if live is None else self._state(live)
        line = await self._over(request_id) if live is None else dict(live.account.line.as_dict())
        if line is None:
            raise NotFound(f"There is no request {request_id[:100]!r}: it is not being served, and not in the log.")
        if not self._gateway.services.settings.log_prompts:
            line = without_prompts(line)
        told = decision(line, self._choice(request_id))
        return Json({"request_id": request_id, "state": state, "line": line, "decision": told})

    def _live(self, request_id: str) -> Exchange | None:
        return next((each for each in self._gateway.inference.active if each.request_id == request_id), None)

    def _state(self, live: Exchange) -> str:
        from rolecall.insight.sections import live_row  # noqa: PLC0415

        scheduler = self._gateway.services.supervisor.scheduler
        awaited = {each.waiter: each.model for each in scheduler.queue()}
        states = {name: scheduler.state(name) for name in awaited.values()}
        return str(live_row(live, awaited, states, time.monotonic())["state"])

    async def _over(self, request_id: str) -> Fields | None:
        from rolecall.insight.history import read_line  # noqa: PLC0415

        found = await self._aside(lambda: read_line(self._gateway.services.recorder.path, request_id))
        return self._feed.recent(request_id) if found is None else found

    def _choice(self, request_id: str) -> Selection | None:
        choices = reversed(self._gateway.services.choices)
        return next((choice for of, choice in choices if of == request_id), None)

    async def cancel(self, request: Request) -> Json:
        """End a request that is being served."""
        request_id = request.path_params["request_id"]
        name = caller_of(request.scope).name
        live = self._live(request_id)
        if live is None or not live.stop("hand" if name is None else f"the key {name}"):
            raise NotFound(f"The request {request_id[:100]!r} is not being served; it may be over already.")
        return Json({"request_id": request_id, "cancelled": True})


def _question(request: Request) -> Question:
    from rolecall.insight.history import Question  # noqa: PLC0415
    from rolecall.insight.log_reader import Wanted, parse_since, parse_status  # noqa: PLC0415

    query = request.query_params
    now = datetime.now(timezone.utc)
    status = _parsed(query.get("status"), "status", parse_status)
    since = _parsed(query.get("since"), "since", lambda text: parse_since(text, now))
    model, role, key = (_text(query.get(name), name) for name in ("model", "role", "key"))
    limit = read_number(request, "limit", DEFAULT_LIMIT, 1, MAX_LIMIT)
    role = None if role is None else role.removeprefix("role:")
    return Question(Wanted(model, role, status, since), key, limit, query.get("before") or None)


def _text(text: str | None, name: str) -> str | None:
    if text and len(text) > _LONGEST:
        raise BadRequest(f"The query's {name} is longer than {_LONGEST} characters.", param=name)
    return text or None


def _parsed(text: str | None, name: str, parse: Callable[[str], Any]) -> Any:
    if not (text := _text(text, name)):
        return None
    try:
        return parse(text)
    except ValueError as error:
        raise BadRequest(f"The query's {name}: {error}.", param=name) from None
