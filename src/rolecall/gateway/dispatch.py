"""From a request to the head of an engine's answer: who is asked, who is asked next, what is sent once more."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass

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

_RETRY_S = 5.0
"""After how long a request may come back whose model has not even begun to load."""

_MAX_ERROR_BYTES = 2**20
"""A longer error answer is passed on without being read for what can be mended."""

_CANNOT_SERVE = (
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


class Dispatch:
    """Sends one request; ``outlook`` says meanwhile what it waits for."""

    def __init__(
        self, services: Services, caller: Caller, account: Account, incoming: Incoming, *, streams: bool
    ) -> None:
        self._services = services
        self._caller = caller
        self._account = account
        self._incoming = incoming
        self._streams = streams
        self._ticket: Ticket | None = None

    def outlook(self) -> Outlook | None:
        """Return what the request waits for; None while an engine has it."""
        return self._ticket.outlook() if self._ticket else None

    async def send(self, target: Target, held: contextlib.AsyncExitStack) -> tuple[UpstreamResponse, Lease]:
        """Wait for a model, send it the request, and return the head of its answer; ``held`` gives all of it back.

        Where no model of a role can serve, its fallbacks are tried in their order. The first refusal is the one that
        the client is told, with what became of the others.
        """
        refusals: list[RolecallError] = []
        for each in (target, *self._services.roster.fallbacks(target)):
            try:
                return await self._send_to(self._caller.check(each), held)
            except _CANNOT_SERVE as error:
                refusals.append(error)
        first, *others = refusals
        if others:
            first.message += f" Its fallbacks cannot either: {' '.join(error.message for error in others)}"
        raise first

    async def _send_to(self, target: Target, held: contextlib.AsyncExitStack) -> tuple[UpstreamResponse, Lease]:
        """Send the request to a model of the target.

        An engine that has died, which nobody noticed yet, takes no connection: the request goes to its successor. So it
        does if the engine ran out of memory before it answered. One that dies otherwise with the request in hand may
        have died of it, and the client is told.
        """
        facts, line = self._incoming.facts, self._account.line
        line.role = target.role or line.role
        entries = self._able(target, facts)
        demand = Demand(role=target.role, needs=facts.needs, profile=target.profile)
        lease = await self._lease(entries, demand)
        try:
            return await self._ask(lease, held), lease
        except UpstreamUnreachable:
            if not await _has_died(lease, _CLOSED_NOTICE_S if lease.backend.managed else _NOTICE_S):
                raise
        except UpstreamError:
            if not (await _has_died(lease) and lease.has_run_out()):
                raise
        lease = await self._lease(entries, demand)
        return await self._ask(lease, held), lease

    def _able(self, target: Target, facts: RequestFacts) -> tuple[ModelEntry, ...]:
        """Return the entries whose engines have the endpoint; raises ``NotImplementedByEngine`` if none has."""
        backend = self._services.roster.backend
        lacking = {entry.name: backend(entry).lacks(entry, facts.endpoint) for entry in target.entries}
        able = tuple(entry for entry in target.entries if lacking[entry.name] is None)
        if not able:
            reasons = dict.fromkeys(filter(None, lacking.values()))
            raise NotImplementedByEngine(" ".join(reasons), param="model")
        return able

    async def _lease(self, entries: Iterable[ModelEntry], demand: Demand) -> Lease:
        """Wait for a model; raises ``ModelLoading`` after ``max_wait_s`` for an answer that is not streamed."""
        ticket = self._ticket = self._services.supervisor.request(entries, demand)
        try:
            if not ticket.is_decided:
                left_s = self._patience_s()
                await asyncio.wait({ticket.lease}, timeout=None if math.isinf(left_s) else left_s)
        except asyncio.CancelledError:
            ticket.leave()
            raise
        if ticket.is_decided:
            return await ticket.wait()
        outlook = ticket.outlook()
        ticket.leave()
        raise _still_waiting(outlook, self._services.settings.max_wait_s)

    async def _ask(self, lease: Lease, held: contextlib.AsyncExitStack) -> UpstreamResponse:
        """Send the request and return the head of the answer, and let ``held`` give back what that needs.

        If there is none, all is given back here, the room in a shared context too: whoever is asked next has its own.
        A request that the engine finds too long is sent once more if it can be made smaller: what was counted as
        fitting can be too long by a few tokens. Where that was too long as well, so much is misjudged of it that it is
        sent as small as it may become.
        """
        async with contextlib.AsyncExitStack() as trial:
            trial.callback(lease.release)
            self._account.note_lease(lease)
            payload = await self._incoming.payload(lease)
            await self._hold_room(lease, trial)
            response: UpstreamResponse = await self._post(lease, payload, trial)
            for is_last in (False, True):
                if response.status < 400:
                    break
                refusal = await _read_whole(response, self._services.settings.backend_timeout_ms / 1000)
                smaller = await self._incoming.smaller(lease, refusal.content, is_last=is_last)
                if smaller is None:
                    response = refusal
                    break
                response = await self._post(lease, smaller, trial)
            held.push_async_callback(trial.pop_all().aclose)
            return response

    async def _hold_room(self, lease: Lease, held: contextlib.AsyncExitStack) -> None:
        """Wait until the engine's context has room beside the requests that share it; raises ``EngineBusy``."""
        with anyio.move_on_after(self._patience_s()) as waiting:
            await held.enter_async_context(self._incoming.room(lease))
        if waiting.cancelled_caught:
            raise EngineBusy(
                f"The requests that the model {lease.entry.name!r} is answering fill its context; there was no room "
                "for this one beside them. Send it again; a stream waits for as long as it takes.",
                retry_after_s=_RETRY_S,
            )

    def _patience_s(self) -> float:
        """Return how long the request may wait yet: a stream for ever."""
        limit_s = self._services.settings.max_wait_s
        return math.inf if self._streams else max(0.0, self._account.started_at + limit_s - time.monotonic())

    async def _post(self, lease: Lease, payload: Payload, held: contextlib.AsyncExitStack) -> UpstreamResponse:
        lease.touch()
        self._account.note_sent()
        response = await self._services.transport.post(
            lease.upstream.url(self._incoming.facts.endpoint),
            self._headers(lease, payload),
            payload.data,
            head_timeout_s=self._services.settings.backend_timeout_ms / 1000,
        )
        # Closed before the lease is given back: an engine ends fast only when nobody is connected.
        held.push_async_callback(response.close)
        lease.touch()
        return response

    def _headers(self, lease: Lease, payload: Payload) -> dict[str, str]:
        headers = {
            "content-type": payload.content_type,
            "content-length": str(payload.size),
            "accept-encoding": "identity",
            "x-request-id": self._account.line.request_id or "",
        }
        authorization = lease.upstream.authorization()
        return headers | {"authorization": authorization} if authorization else headers


@dataclass(slots=True)
class _Whole:
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
