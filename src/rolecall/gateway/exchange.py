"""One inference request from its first byte to its line in the log."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
import uuid
from collections.abc import AsyncIterator, Coroutine, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import quote

import anyio
from starlette.types import Receive, Scope, Send

from rolecall.core.catalog import Target
from rolecall.core.lifecycle import State
from rolecall.core.models import ModelEntry
from rolecall.core.parameters import adapt
from rolecall.core.selection import Demand
from rolecall.core.sse import StreamWatch
from rolecall.core.transforms import GENERATING, RequestFacts, read_facts
from rolecall.errors import ModelLoading, RolecallError, ShuttingDown, UpstreamError, UpstreamUnreachable
from rolecall.gateway.account import Account
from rolecall.gateway.body import (
    ClientGone,
    dump_json,
    parse_answer,
    parse_json,
    receive_body,
    wait_until_gone,
)
from rolecall.gateway.comments import Commentary
from rolecall.gateway.recorder import Recorder
from rolecall.gateway.reply import Reply, as_stream, engine_error
from rolecall.gateway.upstream import Transport, UpstreamResponse
from rolecall.runtime.lease import Lease, Outlook, Ticket
from rolecall.runtime.roster import Roster
from rolecall.runtime.supervisor import Supervisor
from rolecall.settings import Settings

T = TypeVar("T")

log = logging.getLogger(__name__)

CLIENT_GONE = 499
"""nginx's status for a client that closed its connection; it is never sent, only logged."""

LAST_WORDS_S = 1.0
"""How long an answer that is ended at shutdown waits for its client to take the error."""

_NOTICE_S = 0.5
"""How long the end of an engine may take to be noticed once its connections break."""

_CUT = (None, "abort")
"""Finish reasons of an answer that its engine cut, though it ended the stream as if nothing were wrong (vLLM does)."""

_STREAMING = GENERATING | {"/v1/responses", "/v1/messages"}
"""The endpoints that answer ``stream: true`` with server-sent events."""

_RETRY_S = 5.0
"""After how long a request may come back whose model has not even begun to load."""

_PASSED_HEADERS = ("content-type", "content-encoding", "cache-control", "retry-after", "openai-processing-ms")


@dataclass(frozen=True, slots=True)
class Services:
    """What an exchange works with."""

    settings: Settings
    roster: Roster
    supervisor: Supervisor
    transport: Transport
    recorder: Recorder


class Exchange:
    """Receives, routes, forwards, relays and records one request.

    Two tasks: one answers, one watches for the client's leaving, which ends the first at once and with it the engine's
    work. Lease and line are given back in ``finally`` blocks of their own, so that no cancellation can skip them.
    """

    def __init__(self, services: Services, scope: Scope, send: Send) -> None:
        self._services = services
        self._scope = scope
        self._is_delivered = False
        self._receiving = anyio.CancelScope()
        self._answering: asyncio.Task[None] | None = None
        self._ticket: Ticket | None = None
        self._commentary: Commentary | None = None
        self.request_id = new_request_id()
        self._reply = Reply(send, self.request_id, services.settings.stream_idle_timeout_ms / 1000)
        self._account = Account(scope, self.request_id, keeps_prompts=services.settings.log_prompts)
        self._answer, self._line = self._account.answer, self._account.line

    async def run(self, receive: Receive) -> None:
        """Serve the request; exactly one line is recorded, whatever happens."""
        try:
            try:
                await self._serve(receive)
            except RolecallError as error:
                await self._fail(error)
            except (ClientGone, asyncio.CancelledError):
                raise
            except Exception:
                log.exception("request %s failed", self.request_id)
                await self._fail(RolecallError(f"rolecall itself failed; its log says why ({self.request_id})."))
        except ClientGone as gone:
            if not self._is_delivered:
                self._line.status = CLIENT_GONE
                self._line.error = f"client_gone: {gone}"
        except asyncio.CancelledError:
            self._note(ShuttingDown())
            raise
        finally:
            profile = self._services.roster.active.profile.name
            self._services.recorder.record(self._account.close(profile, self._reply.bytes_out))

    def interrupt(self) -> None:
        """End the answer now: the server has waited for it as long as it will."""
        self._reply.patience_s = LAST_WORDS_S
        self._receiving.cancel()
        if self._answering is not None:
            self._answering.cancel()

    def _note(self, error: RolecallError) -> None:
        self._account.note_error(error, within_answer=self._reply.has_started)

    async def _fail(self, error: RolecallError) -> None:
        self._note(error)
        await self._reply.fail(error)

    async def _serve(self, receive: Receive) -> None:
        body: bytes | None = None
        with self._receiving:
            body = await receive_body(self._scope, receive, self._services.settings.max_body_bytes)
        if body is None:
            raise ShuttingDown
        self._line.bytes_in = len(body)
        answering = self._answering = asyncio.create_task(self._respond(body))
        watching = asyncio.create_task(wait_until_gone(receive))
        del body  # the answering task lets go of it as soon as it can
        try:
            await asyncio.wait({answering, watching}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            left = watching.done() and not answering.done()
            watching.cancel()
            answering.cancel()
            await asyncio.wait({answering})
        failure = None if answering.cancelled() else answering.exception()
        if left:
            raise ClientGone
        if answering.cancelled():
            raise ShuttingDown
        if failure is not None:
            raise failure

    # -- the answering task

    async def _respond(self, raw: bytes) -> None:
        body = parse_json(raw)
        del raw  # images are large and the answer may be long: one copy is enough
        facts = read_facts(body, self._scope["path"], max_image_bytes=self._services.settings.max_image_bytes)
        self._account.note_facts(facts, body)
        target = self._services.roster.catalog.resolve(facts.model)
        self._line.role = target.role
        if _streams(facts) and self._services.settings.stream_loading_comments:
            self._commentary = Commentary(self._reply, self._outlook, _known_headers(target))
        # Closed in reverse: the connection before the lease, for an engine ends fast only when nobody is connected.
        async with contextlib.AsyncExitStack() as held:
            response, lease = await self._while_waiting(self._send_to_engine(body, facts, target, held))
            del body
            await self._relay(response, lease, facts)

    async def _while_waiting(self, work: Coroutine[Any, Any, T]) -> T:
        """Do what the client has to wait for; a stream's client is told of it."""
        return await (work if self._commentary is None else self._commentary.over(work))

    def _outlook(self) -> Outlook | None:
        return self._ticket.outlook() if self._ticket else None

    async def _send_to_engine(
        self, body: Mapping[str, Any], facts: RequestFacts, target: Target, held: contextlib.AsyncExitStack
    ) -> tuple[UpstreamResponse, Lease]:
        """Wait for a model, send it the request, and return the head of its answer; ``held`` gives all of it back.

        An engine that has died, which nobody noticed yet, takes no connection: the request goes to its successor. So it
        does if the engine ran out of memory before it answered. One that dies otherwise with the request in hand may
        have died of it, and the client is told.
        """
        demand = Demand(role=target.role, needs=facts.needs)
        lease = await self._lease(target.entries, demand, facts)
        try:
            return await self._post(lease, body, facts, held), lease
        except UpstreamUnreachable:
            if not await _has_died(lease):
                raise
        except UpstreamError:
            if not (await _has_died(lease) and lease.has_run_out()):
                raise
        lease = await self._lease(target.entries, demand, facts)
        return await self._post(lease, body, facts, held), lease

    async def _lease(self, entries: Iterable[ModelEntry], demand: Demand, facts: RequestFacts) -> Lease:
        """Wait for a model; raises ``ModelLoading`` after ``max_wait_s`` for an answer that is not streamed."""
        limit_s = self._services.settings.max_wait_s
        left_s = None if _streams(facts) else max(0.0, self._account.started_at + limit_s - time.monotonic())
        ticket = self._ticket = self._services.supervisor.request(entries, demand)
        try:
            if not ticket.is_decided:
                await asyncio.wait({ticket.lease}, timeout=left_s)
        except asyncio.CancelledError:
            ticket.leave()
            raise
        if ticket.is_decided:
            return await ticket.wait()
        outlook = ticket.outlook()
        ticket.leave()
        raise _still_waiting(outlook, limit_s)

    async def _post(
        self, lease: Lease, body: Mapping[str, Any], facts: RequestFacts, held: contextlib.AsyncExitStack
    ) -> UpstreamResponse:
        """Send the request and return the head of the answer; if there is none, the lease is given back."""
        held.callback(lease.release)
        try:
            self._account.note_lease(lease)
            data = dump_json(adapt(body, facts, lease.entry, lease.backend.served_id(lease.entry)))
            lease.touch()
            response = await self._services.transport.post(
                lease.upstream.url(facts.endpoint),
                self._request_headers(lease),
                data,
                head_timeout_s=self._services.settings.backend_timeout_ms / 1000,
            )
        except BaseException:
            lease.release()
            raise
        held.push_async_callback(response.close)
        lease.touch()
        return response

    async def _relay(self, response: UpstreamResponse, lease: Lease, facts: RequestFacts) -> None:
        if not (200 <= response.status < 300 or 400 <= response.status < 600):
            raise UpstreamError(f"The engine answered with the status {response.status}, which is no answer.")
        # An engine that compresses although it was asked not to: its answer passes unread, and therefore whole.
        is_plain = response.headers.get("content-encoding", "identity") == "identity"
        if is_plain and response.headers.get("content-type", "").startswith("text/event-stream"):
            await self._relay_stream(response, lease, facts)
        else:
            await self._relay_whole(response, lease, facts, is_plain=is_plain)

    def _request_headers(self, lease: Lease) -> dict[str, str]:
        headers = {
            "content-type": "application/json",
            "accept-encoding": "identity",
            "x-request-id": self.request_id,
        }
        key = os.environ.get(lease.upstream.api_key_env or "", "").strip()
        return headers | {"authorization": f"Bearer {key}"} if key else headers

    async def _relay_stream(self, response: UpstreamResponse, lease: Lease, facts: RequestFacts) -> None:
        """Pass the events on as they come; raises ``UpstreamError`` for a stream that ends before its answer does."""
        watch = StreamWatch(self._answer, hide_usage=facts.hides_usage)
        self._line.status = response.status
        await self._reply.start(response.status, self._response_headers(response))
        chunks = response.chunks(self._services.settings.stream_idle_timeout_ms / 1000)
        chunk = await self._while_waiting(_next(chunks))
        while chunk is not None:
            lease.touch()
            passed = watch.feed(chunk)
            self._account.note_output()
            if passed:
                await self._reply.body(passed)
            # Many clients close at the last mark, without waiting for the end of the HTTP answer.
            self._is_delivered = self._answer.is_complete
            chunk = None if watch.is_done else await _next(chunks)
        rest = watch.close()
        if facts.endpoint in GENERATING and not self._answer.is_complete:
            raise UpstreamError("The engine ended its answer without finishing it.")
        if facts.endpoint in GENERATING and not self._answer.error and self._answer.finish_reason in _CUT:
            self._line.error = "engine_error: the engine ended its answer without finishing it"
        await self._reply.body(rest, more=False)

    async def _relay_whole(
        self, response: UpstreamResponse, lease: Lease, facts: RequestFacts, *, is_plain: bool
    ) -> None:
        """Pass a whole answer on once it is complete, so that one that was cut, or is none, becomes a clean error."""
        body = await self._while_waiting(self._read(response, lease))
        said = parse_answer(response.status, body) if is_plain else None
        self._answer.read(said)
        self._line.status = response.status
        if self._reply.has_head:
            await self._pass_into_stream(response.status, said, facts)
        else:
            await self._reply.whole(response.status, self._response_headers(response), body)
        self._is_delivered = True

    async def _read(self, response: UpstreamResponse, lease: Lease) -> bytes:
        parts = []
        async for chunk in response.chunks(self._services.settings.backend_timeout_ms / 1000):
            lease.touch()
            parts.append(chunk)
        return b"".join(parts)

    async def _pass_into_stream(self, status: int, said: Any, facts: RequestFacts) -> None:
        """Pass a whole answer on to a client whose stream has begun while it waited."""
        if status >= 400 and said is not None:
            message = engine_error(status, said)
            self._answer.read(message)
            await self._reply.break_off(message)
            return
        chunk = as_stream(said) if facts.endpoint in GENERATING else None
        if chunk is None:
            raise UpstreamError("The engine gave a whole answer that fits into no stream, though one was asked for.")
        await self._reply.start(status, {})
        await self._reply.body(chunk, more=False)

    def _response_headers(self, response: UpstreamResponse) -> dict[str, str]:
        passed = {name: response.headers[name] for name in _PASSED_HEADERS if name in response.headers}
        return passed | _model_header(self._line.model or "")


def _streams(facts: RequestFacts) -> bool:
    return facts.stream and facts.endpoint in _STREAMING


def _known_headers(target: Target) -> dict[str, str]:
    """Return the headers that are known before a model is chosen."""
    return _model_header(target.entries[0].name) if len(target.entries) == 1 else {}


def _model_header(name: str) -> dict[str, str]:
    return {"x-rolecall-model": quote(name, safe="()/:@ ")}


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


async def _next(chunks: AsyncIterator[bytes]) -> bytes | None:
    return await anext(chunks, None)


async def _has_died(lease: Lease) -> bool:
    with anyio.move_on_after(_NOTICE_S):
        await lease.engine_gone.wait()
    return lease.engine_gone.is_set()


def new_request_id() -> str:
    """Return an id for ``x-request-id`` and the log."""
    return "req_" + uuid.uuid4().hex
