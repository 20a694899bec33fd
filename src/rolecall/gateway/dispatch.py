"""From a request to the head of an engine's answer: who is asked, who is asked next, what is sent once more."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from functools import lru_cache

import anyio

from rolecall.core.catalog import Target
from rolecall.core.lifecycle import State
from rolecall.core.models import ModelEntry
from rolecall.core.selection import Demand
from rolecall.core.transforms import RequestFacts
from rolecall.errors import (
    EngineBusy,
    Forbidden,
    ModelLoading,
    ModelNotFound,
    ModelTooLarge,
    NoModelForRole,
    NotImplementedByEngine,
    RolecallError,
    StartFailed,
    UnsupportedInput,
    UpstreamError,
    UpstreamUnreachable,
)
from rolecall.gateway.account import Account
from rolecall.gateway.caller import Caller
from rolecall.gateway.incoming import Incoming, Payload
from rolecall.gateway.services import Services
from rolecall.gateway.upstream import UpstreamResponse
from rolecall.runtime.lease import Lease, Outlook, Ticket

log = logging.getLogger(__name__)

_NOTICE_S = 0.5
"""How long the end of an engine may take to be noticed once its connections break."""

_CLOSED_NOTICE_S = 10.0
"""The same for an engine of ours that listens no more: vLLM's first process outlives its port by some seconds."""

_MOST_STARTS = 6
"""How often a request goes to the successor of an engine: alone, with three contexts, on the CPU, and one more."""

_RETRY_S = 5.0
"""After how long a request may come back whose model has not even begun to load."""

_MAX_ERROR_BYTES = 2**20
"""A longer error answer is passed on without being read for what can be mended."""

CANNOT_SERVE = (
    StartFailed,
    Forbidden,
    ModelNotFound,
    ModelTooLarge,
    NoModelForRole,
    NotImplementedByEngine,
    UnsupportedInput,
    UpstreamUnreachable,
)
"""Refusals after which a role's fallbacks are tried: another model may serve the same request."""


@dataclass(slots=True)
class Held:
    """What a request holds of an engine: the lease, room in a context that its requests share, the answers so far.

    An ``AsyncExitStack`` for the three costs as much as sending the request.
    """

    lease: Lease
    room: AbstractAsyncContextManager[None] | None = None
    answers: list[UpstreamResponse] = field(default_factory=list)

    async def give_back(self) -> None:
        """Close the answers, then give back the rest: an engine ends fast only when nobody is connected."""
        try:
            await _close(self.answers)
        finally:
            try:
                if self.room is not None:
                    await self.room.__aexit__(None, None, None)
            finally:
                self.lease.release()


async def _close(answers: Sequence[UpstreamResponse]) -> None:
    """Close them all, also if that is cancelled meanwhile."""
    if answers:
        try:
            await answers[0].close()
        finally:
            await _close(answers[1:])


class Dispatch:
    """Sends one request; ``outlook`` says meanwhile what it waits for. Who sends has to ``give_back`` at the end."""

    def __init__(
        self, services: Services, caller: Caller, account: Account, incoming: Incoming, *, streams: bool
    ) -> None:
        self._services = services
        self._caller = caller
        self._account = account
        self._incoming = incoming
        self._streams = streams
        self._ticket: Ticket | None = None
        self._held: Held | None = None

    def outlook(self) -> Outlook | None:
        """Return what the request waits for; None while an engine has it."""
        return self._ticket.outlook() if self._ticket else None

    @property
    def waiter(self) -> int | None:
        """The number under which it waits, or waited last, for a model; None if it never had to."""
        return None if self._ticket is None else self._ticket.id

    async def give_back(self) -> None:
        """Give back what is held of an engine; nothing happens if nothing is."""
        held, self._held = self._held, None
        if held is not None:
            await held.give_back()

    async def send(self, target: Target) -> tuple[UpstreamResponse, Lease]:
        """Wait for a model, send it the request, and return the head of its answer.

        Where no model of a role can serve, its fallbacks are tried in their order. The first refusal is the one that
        the client is told, with what became of the others.
        """
        refusals: list[RolecallError] = []
        for each in self._choices(target):
            try:
                return await self.send_to(self._caller.check(each))
            except CANNOT_SERVE as error:
                refusals.append(error)
        first, *others = refusals
        if others:
            first.message += f" Its fallbacks cannot either: {' '.join(error.message for error in others)}"
        raise first

    def _choices(self, target: Target) -> Iterator[Target]:
        """Yield the target, and then its fallbacks, which few requests need."""
        yield target
        yield from self._services.roster.fallbacks(target)

    async def send_to(self, target: Target) -> tuple[UpstreamResponse, Lease]:
        """Send the request to a model of the target.

        An engine that has died, which nobody noticed yet, takes no connection: the request goes to its successor. So it
        does if the engine ran out of memory before it answered: its successor is alone, then smaller. One that dies
        otherwise with the request in hand may have died of it, and the client is told.
        """
        facts, line = self._incoming.facts, self._account.line
        line.role = target.role or line.role
        entries = self._able(target, facts)
        demand = _demand(target.role, facts.needs, target.profile)
        for attempt in range(_MOST_STARTS):
            lease = await self._lease(entries, demand)
            try:
                return await self._ask(lease), lease
            except UpstreamUnreachable:
                if attempt or not await _has_died(lease, _CLOSED_NOTICE_S if lease.backend.managed else _NOTICE_S):
                    raise
            except UpstreamError:
                if not (await _has_died(lease) and lease.has_run_out()):
                    raise
        lease = await self._lease(entries, demand)
        return await self._ask(lease), lease

    def _able(self, target: Target, facts: RequestFacts) -> tuple[ModelEntry, ...]:
        """Return the entries whose engines have the endpoint; raises ``NotImplementedByEngine`` if none has."""
        backend = self._services.roster.backend
        lacking = [backend(entry).lacks(entry, facts.endpoint) for entry in target.entries]
        if not any(lacking):
            return target.entries
        able = tuple(entry for entry, lack in zip(target.entries, lacking, strict=True) if lack is None)
        if not able:
            raise NotImplementedByEngine(" ".join(dict.fromkeys(filter(None, lacking))), param="model")
        return able

    async def _lease(self, entries: Iterable[ModelEntry], demand: Demand) -> Lease:
        """Wait for a model; raises ``ModelLoading`` after ``max_wait_s`` for an answer that is not streamed."""
        lease = self._services.supervisor.lease_at_once(entries, demand)
        if lease is not None:
            return lease
        ticket = self._ticket = self._services.supervisor.request(entries, demand)
        if ticket.lease.done():
            return ticket.lease.result()
        left_s = self._patience_s()
        try:
            await asyncio.wait({ticket.lease}, timeout=None if math.isinf(left_s) else left_s)
        except asyncio.CancelledError:
            ticket.leave()
            raise
        if ticket.lease.done():
            return ticket.lease.result()
        outlook = ticket.outlook()
        ticket.leave()
        raise _still_waiting(outlook, self._services.settings.max_wait_s)

    async def _ask(self, lease: Lease) -> UpstreamResponse:
        """Send the request and return the head of the answer; what that needs is held until ``give_back``.

        If there is no answer, all is given back here, the room in a shared context too: whoever is asked next has its
        own. A request that the engine finds too long is sent once more if it can be made smaller: what was counted as
        fitting can be too long by a few tokens. Where that was too long as well, so much is misjudged of it that it is
        sent as small as it may become.
        """
        held = self._held = Held(lease)
        try:
            self._account.note_lease(lease)
            if self._account.line.role is not None:
                self._services.choices.append((self._account.line.request_id, lease.selection))
            payload = await self._incoming.payload(lease)
            if (room := self._incoming.room(lease)) is not None:
                await self._hold_room(held, room)
            response = await self._post(held, payload)
            for is_last in (False, True):
                if response.status < 400:
                    return response
                refusal = await _read_whole(response, self._services.settings.backend_timeout_ms / 1000)
                smaller = await self._incoming.smaller(lease, refusal.content, is_last=is_last)
                if smaller is None:
                    return refusal
                response = await self._post(held, smaller)
        except BaseException:
            await self.give_back()
            raise
        return response

    async def _hold_room(self, held: Held, room: AbstractAsyncContextManager[None]) -> None:
        """Wait until the engine's context has room beside the requests that share it; raises ``EngineBusy``."""
        with anyio.move_on_after(self._patience_s()) as waiting:
            await room.__aenter__()
            held.room = room
        if waiting.cancelled_caught:
            raise EngineBusy(
                f"The requests that the model {held.lease.entry.name!r} is answering fill its context; there was no "
                "room for this one beside them. Send it again; a stream waits for as long as it takes.",
                retry_after_s=_RETRY_S,
            )

    def _patience_s(self) -> float:
        """Return how long the request may wait yet: a stream for ever."""
        limit_s = self._services.settings.max_wait_s
        return math.inf if self._streams else max(0.0, self._account.started_at + limit_s - time.monotonic())

    async def _post(self, held: Held, payload: Payload) -> UpstreamResponse:
        lease = held.lease
        lease.touch()
        self._account.note_sent()
        try:
            response = await self._services.transport.post(
                lease.upstream.url(self._incoming.facts.endpoint),
                self._headers(lease, payload),
                payload.data,
                head_timeout_s=self._services.settings.backend_timeout_ms / 1000,
            )
        except UpstreamUnreachable as error:
            raise self._services.unreachable.named(error, lease) from error
        held.answers.append(response)
        lease.touch()
        return response

    def _headers(self, lease: Lease, payload: Payload) -> dict[str, str]:
        headers = {
            "content-type": payload.content_type,
            "content-length": str(payload.size),
            "accept-encoding": "identity",
            "x-request-id": self._account.line.request_id or "",
        }
        if authorization := lease.upstream.authorization():
            headers["authorization"] = authorization
        if (trace := self._account.trace) is not None:
            headers |= trace.headers()
        return headers


@lru_cache(maxsize=256)
def _demand(role: str | None, needs: frozenset[str], profile: str | None) -> Demand:
    return Demand(role=role, needs=needs, profile=profile)


@dataclass(slots=True)
class _Whole(UpstreamResponse):
    """An answer that was read to its end, or its part up to the limit and then the rest as it comes."""

    status: int
    headers: Mapping[str, str]
    content: bytes
    rest: AsyncIterator[bytes] | None = None

    async def chunks(self, idle_timeout_s: float) -> AsyncIterator[bytes]:
        """Yield the body."""
        del idle_timeout_s
        yield self.content
        if self.rest is not None:
            async for chunk in self.rest:
                yield chunk

    async def close(self) -> None:
        """The connection is closed by whoever made it."""


async def _read_whole(response: UpstreamResponse, idle_timeout_s: float) -> _Whole:
    chunks = response.chunks(idle_timeout_s)
    whole = _Whole(response.status, response.headers, b"")
    async for chunk in chunks:
        whole.content += chunk
        if len(whole.content) > _MAX_ERROR_BYTES:
            whole.rest = chunks
            break
    return whole


def _still_waiting(outlook: Outlook | None, limit_s: float) -> ModelLoading:
    problem = "No model has become free"
    if outlook is not None:
        is_loading = outlook.state is State.STARTING
        problem = f"The model {outlook.model!r} {'is still being loaded' if is_loading else 'has not become free'}"
    return ModelLoading(
        f"{problem} after {limit_s:g} s (max_wait_s), and the request has left the queue. Send it again; a stream "
        "waits for as long as it takes.",
        retry_after_s=outlook.eta_s if outlook and outlook.eta_s is not None else _RETRY_S,
    )


async def _has_died(lease: Lease, notice_s: float = _NOTICE_S) -> bool:
    with anyio.move_on_after(notice_s):
        await lease.engine_gone.wait()
    return lease.engine_gone.is_set()
