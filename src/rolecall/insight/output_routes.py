"""What a model's engine prints: the last lines of it, or all that comes from now on."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import anyio
import orjson
from starlette.requests import Request
from starlette.responses import Response

from rolecall.core.models import ModelEntry
from rolecall.errors import BadRequest
from rolecall.gateway.caller import caller_of
from rolecall.gateway.query import read_flag, read_number
from rolecall.gateway.recorder import timestamp
from rolecall.gateway.routes import Json, ScopedRoute
from rolecall.gateway.server import Gateway
from rolecall.insight.board import event
from rolecall.insight.engine_output import LOOK_S, News, OutputFile, plain
from rolecall.insight.event_stream import HEARTBEAT_S, STILL_THERE, EventStream, too_many
from rolecall.insight.staying import staying
from rolecall.runtime.launcher import ENGINE_LOGS, is_secret, log_path

DEFAULT_LINES, MOST_LINES = 200, 2000
MOST_FOLLOWERS = 16


class OutputRoutes:
    """Answers for one gateway; ``stop`` ends all that follow."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._followers: set[asyncio.Event] = set()

    def routes(self) -> list[ScopedRoute]:
        """Return the routes."""
        return [ScopedRoute("/v1/models/{id:path}/output", self.output, methods=["GET"], need="admin")]

    async def output(self, request: Request) -> Response:
        """Return the last lines, or follow."""
        entry = self._entry(request.path_params["id"])
        lines, follows = read_number(request, "lines", DEFAULT_LINES, 0, MOST_LINES), read_flag(request, "follow")
        file = OutputFile(log_path(self._gateway.services.settings.state_dir / ENGINE_LOGS, entry.name))
        if not follows:
            news = await asyncio.to_thread(file.last, lines)
            return Json({"object": "list", "model": entry.name, "data": self._shown(entry, news)})
        if len(self._followers) >= MOST_FOLLOWERS:
            raise too_many(f"{MOST_FOLLOWERS} clients follow engines already; close one.")
        over = asyncio.Event()
        self._followers.add(over)
        may_stay = staying(self._gateway.keys, caller_of(request.scope))
        parts = self._follow(entry, file, lines, over, may_stay)
        return EventStream(parts, over.set, lambda: self._followers.discard(over))

    def _entry(self, name: str) -> ModelEntry:
        roster = self._gateway.services.roster
        target = roster.resolve(name)
        if target.role is not None:
            names = ", ".join(entry.name for entry in target.entries)
            raise BadRequest(f"Output is a model's; the role {target.role!r} is played by {names}.", param="id")
        entry = target.entries[0]
        if not roster.backend(entry).managed:
            raise BadRequest(
                f"The model {entry.name!r} is served by {entry.backend_config.base_url}, which somebody else runs: "
                "what that prints is not known here.",
                param="id",
            )
        return entry

    async def _follow(
        self, entry: ModelEntry, file: OutputFile, lines: int, over: asyncio.Event, may_stay: Callable[[], bool]
    ) -> AsyncIterator[bytes]:
        number, told_at = 1, time.monotonic()
        yield self._event("output", number, entry, await asyncio.to_thread(file.last, lines))
        while not over.is_set() and may_stay():
            with anyio.move_on_after(LOOK_S):
                await over.wait()
            news = await asyncio.to_thread(file.more)
            if news.lines or news.is_restart:
                number, told_at = number + 1, time.monotonic()
                yield self._event("restart" if news.is_restart else "output", number, entry, news)
            elif time.monotonic() - told_at >= HEARTBEAT_S:
                told_at = time.monotonic()
                yield STILL_THERE

    def _event(self, kind: str, number: int, entry: ModelEntry, news: News) -> bytes:
        told: dict[str, Any] = {"model": entry.name, "lines": self._shown(entry, news), "skipped": news.skipped}
        return event(kind, number, timestamp(time.time()), orjson.dumps(told))

    def _shown(self, entry: ModelEntry, news: News) -> list[str]:
        config = entry.backend_config
        secrets = [value for name, value in config.env.items() if is_secret(name)]
        secrets += [os.environ.get(config.api_key_env or "", "")]
        secrets += [self._gateway.services.supervisor.key_of(entry.name) or ""]
        return [plain(line, secrets) for line in news.lines]

    def stop(self) -> None:
        """End all streams."""
        for over in self._followers:
            over.set()
