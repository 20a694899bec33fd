"""What a request holds while one engine after another is asked."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from fakes import FakeBackend, FakeTransport
from gateway.test_engine_context import lease
from rolecall.core.catalog import Target
from rolecall.core.transforms import RequestFacts
from rolecall.errors import UpstreamUnreachable
from rolecall.gateway.account import Account
from rolecall.gateway.caller import Anyone
from rolecall.gateway.dispatch import Dispatch
from rolecall.gateway.incoming import Incoming, Payload
from rolecall.gateway.upstream import UpstreamResponse
from rolecall.runtime.lease import Lease, Ticket
from rolecall.settings import load_settings

CHAT = "/v1/chat/completions"


@dataclass
class Holding:
    """A request of which each engine has to hold room; ``events`` tell what is taken and given back, in order."""

    events: list[str]
    facts: RequestFacts = field(default_factory=lambda: RequestFacts(CHAT, "role:write"))

    async def payload(self, lease: Lease) -> Payload:
        """Return an empty object."""
        return Payload(b"{}", 2)

    async def smaller(self, lease: Lease, answer: bytes, *, is_last: bool) -> Payload | None:
        """Return that it cannot be made smaller."""
        return None

    @contextlib.asynccontextmanager
    async def room(self, lease: Lease) -> AsyncIterator[None]:
        """Note when it is taken and given back."""
        self.events.append(f"room of {lease.entry.name}")
        try:
            yield
        finally:
            self.events.append(f"room of {lease.entry.name} back")


@dataclass
class Answering:
    """An engine's answer."""

    events: list[str]
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)

    async def chunks(self, idle_timeout_s: float) -> AsyncIterator[bytes]:
        """Yield an empty object."""
        yield b"{}"

    async def close(self) -> None:
        """Note it."""
        self.events.append("closed")


class Engines:
    """Who is asked in turn, and what it answers: a status, or None where nobody listens any more."""

    def __init__(self, tmp_path: Path, *asked: tuple[str, int | None]) -> None:
        self.events: list[str] = []
        self._statuses = iter([status for _, status in asked])
        self._leases = iter([self._lease(name) for name, _ in asked])
        self.targets = [Target((lease(name=name).entry,), "write") for name in dict.fromkeys(dict(asked))]
        services = SimpleNamespace(
            settings=load_settings({"config_dir": tmp_path, "state_dir": tmp_path}, {}),
            roster=SimpleNamespace(fallbacks=lambda _: self.targets[1:], backend=lambda _: FakeBackend()),
            supervisor=SimpleNamespace(request=self._request),
            transport=FakeTransport(self._answer),
        )
        scope: Any = {"path": CHAT, "headers": []}
        account = Account(scope, "req_1", keeps_prompts=False)
        incoming = cast("Incoming", Holding(self.events))
        self.dispatch = Dispatch(cast("Any", services), Anyone(), account, incoming, streams=True)

    def _lease(self, name: str) -> Lease:
        made = replace(lease(name=name), _give_back=lambda: self.events.append(f"lease of {name} back"))
        made.engine_gone.set()
        return made

    def _request(self, *_: Any) -> Ticket:
        future: asyncio.Future[Lease] = asyncio.get_running_loop().create_future()
        future.set_result(next(self._leases))
        return Ticket(1, 0.0, future, lambda: None, lambda: None)

    def _answer(self, url: str, body: bytes) -> UpstreamResponse:
        status = next(self._statuses)
        if status is None:
            raise UpstreamUnreachable("nobody listens")
        return Answering(self.events, status)


TRIED = ["room of first", "room of first back", "lease of first back"]


@pytest.mark.parametrize("status", [200, 500])
async def test_a_fallback_answers_without_the_room_of_the_first_choice(tmp_path: Path, status: int) -> None:
    """What was held of a model that could not serve is given back before the next one is asked."""
    engines = Engines(tmp_path, ("first", None), ("first", None), ("second", status))
    async with contextlib.AsyncExitStack() as held:
        response, served = await engines.dispatch.send(engines.targets[0], held)
        assert (response.status, served.entry.name) == (status, "second")
        assert engines.events == [*TRIED, *TRIED, "room of second"]
    assert engines.events[7:] == ["closed", "room of second back", "lease of second back"]


async def test_an_engines_successor_answers_without_the_room_of_its_predecessor(tmp_path: Path) -> None:
    """A request that goes to the next engine of the same model holds nothing of the one that has died."""
    engines = Engines(tmp_path, ("first", None), ("first", 200))
    async with contextlib.AsyncExitStack() as held:
        await engines.dispatch.send(engines.targets[0], held)
        assert engines.events == [*TRIED, "room of first"]
    assert engines.events[4:] == ["closed", "room of first back", "lease of first back"]


async def test_nothing_is_held_where_nobody_can_serve(tmp_path: Path) -> None:
    """All is given back before the client is told."""
    engines = Engines(tmp_path, ("first", None), ("first", None))
    async with contextlib.AsyncExitStack() as held:
        with pytest.raises(UpstreamUnreachable):
            await engines.dispatch.send(engines.targets[0], held)
        assert engines.events == [*TRIED, *TRIED]
