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
from rolecall.gateway.unreachable import Unreachable
from rolecall.gateway.upstream import UpstreamResponse
from rolecall.runtime.lease import Lease, Ticket
from rolecall.settings import load_settings

CHAT = "/v1/chat/completions"


@dataclass
class Holding:
    """A request of which each engine has to hold room; ``events`` tell what is taken and given back, in order."""

    events: list[str]
    facts: RequestFacts = field(default_factory=lambda: RequestFacts(CHAT, "role:write"))
    smaller_ones: list[bytes] = field(default_factory=list)
    tries: list[bool] = field(default_factory=list)

    async def payload(self, lease: Lease) -> Payload:
        """Return an empty object."""
        return Payload(b"{}", 2)

    async def smaller(self, lease: Lease, answer: bytes, *, is_last: bool) -> Payload | None:
        """Return what the test gave; None, that it cannot be made smaller, once nothing is left."""
        self.tries.append(is_last)
        return Payload(self.smaller_ones.pop(0), 2) if self.smaller_ones else None

    @contextlib.asynccontextmanager
    async def room(self, lease: Lease) -> AsyncIterator[None]:
        """Note when it is taken and given back."""
        self.events.append(f"room of {lease.entry.name}")
        try:
            yield
        finally:
            self.events.append(f"room of {lease.entry.name} back")


@dataclass
class Answering(UpstreamResponse):
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
        self._statuses = [status for _, status in asked]
        self._leases = iter([self._lease(name) for name, _ in asked])
        self.targets = [Target((lease(name=name).entry,), "write") for name in dict.fromkeys(dict(asked))]
        services = SimpleNamespace(
            choices=[],
            settings=load_settings({"config_dir": tmp_path, "state_dir": tmp_path}, {}),
            roster=SimpleNamespace(fallbacks=lambda _: self.targets[1:], backend=lambda _: FakeBackend()),
            supervisor=SimpleNamespace(request=self._request, lease_at_once=lambda *_: None),
            transport=FakeTransport(self._answer),
            unreachable=Unreachable(),
        )
        scope: Any = {"path": CHAT, "headers": []}
        account = Account(scope, "req_1", keeps_prompts=False)
        self.transport, self.incoming = services.transport, Holding(self.events)
        incoming = cast("Incoming", self.incoming)
        self.dispatch = Dispatch(cast("Any", services), Anyone(), account, incoming, streams=True)

    def then(self, *statuses: int) -> None:
        """Answer further requests so."""
        self._statuses += statuses

    def _lease(self, name: str) -> Lease:
        made = replace(lease(name=name), _give_back=lambda _: self.events.append(f"lease of {name} back"))
        made.engine_gone.set()
        return made

    def _request(self, *_: Any) -> Ticket:
        future: asyncio.Future[Lease] = asyncio.get_running_loop().create_future()
        future.set_result(next(self._leases))
        return Ticket(1, 0.0, future, lambda _: None, lambda _: None)

    def _answer(self, url: str, body: bytes) -> UpstreamResponse:
        status = self._statuses.pop(0)
        if status is None:
            raise UpstreamUnreachable("nobody listens")
        return Answering(self.events, status)


TRIED = ["room of first", "room of first back", "lease of first back"]


@pytest.mark.parametrize("status", [200, 500])
async def test_a_fallback_answers_without_the_room_of_the_first_choice(tmp_path: Path, status: int) -> None:
    """What was held of a model that could not serve is given back before the next one is asked."""
    engines = Engines(tmp_path, ("first", None), ("first", None), ("second", status))
    response, served = await engines.dispatch.send(engines.targets[0])
    assert (response.status, served.entry.name) == (status, "second")
    assert engines.events == [*TRIED, *TRIED, "room of second"]
    await engines.dispatch.give_back()
    assert engines.events[7:] == ["closed", "room of second back", "lease of second back"]


async def test_an_engines_successor_answers_without_the_room_of_its_predecessor(tmp_path: Path) -> None:
    """A request that goes to the next engine of the same model holds nothing of the one that has died."""
    engines = Engines(tmp_path, ("first", None), ("first", 200))
    await engines.dispatch.send(engines.targets[0])
    assert engines.events == [*TRIED, "room of first"]
    await engines.dispatch.give_back()
    assert engines.events[4:] == ["closed", "room of first back", "lease of first back"]


async def test_nothing_is_held_where_nobody_can_serve(tmp_path: Path) -> None:
    """All is given back before the client is told."""
    engines = Engines(tmp_path, ("first", None), ("first", None))
    with pytest.raises(UpstreamUnreachable):
        await engines.dispatch.send(engines.targets[0])
    assert engines.events == [*TRIED, *TRIED]
    await engines.dispatch.give_back()


@pytest.mark.parametrize(
    ("statuses", "smaller", "tries", "last"),
    [
        ([400], [], [False], 400),
        ([400, 200], [b"a"], [False], 200),
        ([400, 400], [b"a"], [False, True], 400),
        ([400, 400, 200], [b"a", b"b"], [False, True], 200),
        ([400, 400, 400], [b"a", b"b"], [False, True], 400),
    ],
)
async def test_what_is_too_long_is_made_smaller_twice(
    tmp_path: Path, statuses: list[int], smaller: list[bytes], tries: list[bool], last: int
) -> None:
    """What an engine refuses is not sent again unless it is smaller; what cannot be made so is not tried for again."""
    engines = Engines(tmp_path, ("first", statuses[0]))
    engines.then(*statuses[1:])
    engines.incoming.smaller_ones = list(smaller)
    response, _ = await engines.dispatch.send(engines.targets[0])
    assert response.status == last
    await engines.dispatch.give_back()
    assert [body for _, body in engines.transport.requests] == [b"{}", *smaller]
    assert engines.incoming.tries == tries
    assert engines.events.count("closed") == len(statuses)
