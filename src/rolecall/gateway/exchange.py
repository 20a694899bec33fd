"""One inference request from its first byte to its line in the log."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from functools import lru_cache
from typing import Any, TypeVar
from urllib.parse import quote

from starlette.types import Receive, Scope, Send

from rolecall.core.catalog import Target
from rolecall.core.endpoints import MESSAGES, RESPONSES, UPLOADS
from rolecall.core.history import HEADER as HISTORY_HEADER
from rolecall.core.history import wish_of
from rolecall.core.ranges import check_counts, check_ranges
from rolecall.core.reductions import HEADER as MEMORY_HEADER
from rolecall.core.transforms import GENERATING, read_facts
from rolecall.errors import RequestCancelled, RolecallError, ShuttingDown, UnsupportedMediaType
from rolecall.gateway.account import Account
from rolecall.gateway.body import (
    ClientGone,
    aside,
    discard_body,
    read_json,
    receive_body,
    receive_chunks,
    work_of,
)
from rolecall.gateway.caller import caller_of
from rolecall.gateway.comments import Commentary
from rolecall.gateway.dispatch import Dispatch
from rolecall.gateway.incoming import Incoming
from rolecall.gateway.pipeline import JsonRequest
from rolecall.gateway.relay import Relay
from rolecall.gateway.reply import Reply
from rolecall.gateway.request_id import new_request_id
from rolecall.gateway.services import Services
from rolecall.gateway.trial import Trial, enter
from rolecall.gateway.uploads import Storage, is_upload, read_upload
from rolecall.gateway.upstream import UpstreamResponse
from rolecall.gateway.wire import wire_of
from rolecall.runtime.lease import Lease

T = TypeVar("T")

log = logging.getLogger(__name__)

CLIENT_GONE = 499
"""nginx's status for a client that closed its connection; it is never sent, only logged."""

LAST_WORDS_S = 1.0
"""How long an answer that is ended at shutdown waits for its client to take the error."""

_HISTORY = HISTORY_HEADER.encode()

_STREAMING = GENERATING | UPLOADS | {RESPONSES, MESSAGES}
"""The endpoints that answer ``stream: true`` with server-sent events."""


class Exchange:
    """Receives, routes, forwards, relays and records one request.

    All of it is done by one task. The client's leaving, and the server's end, cancel it wherever it is, and with it the
    engine's work. Lease and line are given back in ``finally`` blocks, so that no cancellation can skip them.
    """

    def __init__(self, services: Services, scope: Scope, send: Send) -> None:
        self._services = services
        self._scope = scope
        self._relay: Relay | None = None
        self._trial: Trial | None = None
        self._incoming: Incoming | None = None
        self._told: Callable[[], Mapping[str, str]] = dict
        self._task: asyncio.Task[Any] | None = None  # while it serves
        self._has_left = self._is_interrupted = False
        self._stopped_by: str | None = None
        self._dispatch: Dispatch | None = None
        self.request_id = new_request_id()
        wire = self._wire = wire_of(scope, send)
        self._reply = Reply(wire, self.request_id, services.settings.stream_idle_timeout_ms / 1000, scope["path"])
        self._account = Account(
            scope, self.request_id, keeps_prompts=services.settings.log_prompts, markers=services.markers
        )
        self._headers = self._account.headers
        self._line = self._account.line
        if (trace := services.tracing.context(self.request_id, scope, self._headers)) is not None:
            self._account.note_trace(trace)
        self._caller = caller_of(scope)
        self._line.key = self._caller.name

    async def run(self, receive: Receive) -> None:
        """Serve the request; exactly one line is recorded, whatever happens."""
        self._task = self._wire.task
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
            self._note_gone(gone)
        except asyncio.CancelledError:
            self._note(ShuttingDown())
            raise
        finally:
            # What refers back to this object would keep all of the request in memory until the next collection.
            self._relay = self._dispatch = None
            self._told = dict
            profile = self._services.roster.active.profile.name
            self._services.recorder.record(self._account.close(profile, self._reply.bytes_out))
            self._caller.spend(self._account.tokens(self._estimated_prompt))

    def _note_gone(self, gone: ClientGone) -> None:
        if self._relay is None or not self._relay.is_delivered:
            self._line.status = CLIENT_GONE
            self._line.error = f"client_gone: {gone}"

    def _estimated_prompt(self, lease: Lease) -> float:
        return 0 if self._incoming is None else self._incoming.estimate(lease)

    def interrupt(self) -> None:
        """End the answer now, unless all of it is written: the server has waited for it as long as it will."""
        if self._reply.is_complete:
            return
        self._reply.patience_s = LAST_WORDS_S
        self._is_interrupted = True
        if self._task is not None:
            self._task.cancel()

    def stop(self, who: str) -> bool:
        """End the request for somebody's sake, whom its line names; whether there was anything left to end."""
        if self._reply.is_complete or self._task is None or self._stopped_by is not None:
            return False
        self._reply.patience_s = LAST_WORDS_S
        self._stopped_by = who
        self._task.cancel()
        return True

    @property
    def account(self) -> Account:
        """What is known of the request so far."""
        return self._account

    @property
    def waiter(self) -> int | None:
        """The number under which it waits, or waited last, for a model; None if it never had to."""
        return None if self._dispatch is None else self._dispatch.waiter

    def _leave(self) -> None:
        """Take in that the client has closed its connection."""
        self._has_left = True
        if self._task is not None:
            self._task.cancel()

    def _note(self, error: RolecallError) -> None:
        self._account.note_error(error, within_answer=self._reply.has_started)

    async def _fail(self, error: RolecallError) -> None:
        self._note(error)
        await self._reply.fail(error, self._told())

    async def _serve(self, receive: Receive) -> None:
        try:
            await self._admit(receive)
            incoming = self._incoming = await self._receive(receive)
            watch = self._wire.watch(receive, self._leave)
            try:
                await self._respond(incoming)
            finally:
                watch.cancel()
                incoming.let_go()
        except asyncio.CancelledError:
            if self._has_left:
                raise ClientGone from None
            if self._stopped_by is not None:
                raise RequestCancelled(self._stopped_by) from None
            if self._is_interrupted:
                raise ShuttingDown from None
            raise
        finally:
            self._task = None  # an error is told undisturbed

    async def _admit(self, receive: Receive) -> None:
        """Raise ``RateLimited`` and ``DiskFull`` before anything of the body is kept or read into objects.

        Most clients look for an answer only after they have sent everything, so the body is thrown away first.
        """
        try:
            self._caller.begin()
            if self._is_upload():
                await self._storage().check_room()
        except RolecallError:
            if not await discard_body(self._headers, receive):
                self._told = lambda: {"connection": "close"}
            raise

    def _is_upload(self) -> bool:
        return self._scope["path"] in UPLOADS and is_upload(self._headers)

    def _storage(self) -> Storage:
        return Storage(self._services.settings.state_dir, self._services.settings.max_upload_bytes)

    async def _receive(self, receive: Receive) -> Incoming:
        """Return the request, whole; raises ``BadRequest`` and ``ClientGone``."""
        settings, endpoint = self._services.settings, self._scope["path"]
        if endpoint in UPLOADS:
            return await self._receive_upload(receive, endpoint)
        raw = await receive_body(self._headers, receive, settings.max_body_bytes, self._wire.body())
        self._line.bytes_in = len(raw)
        body = await read_json(raw, in_full=settings.log_prompts)
        if isinstance(body, dict):
            check_counts(body, settings.max_messages)
        limits = {"max_image_bytes": settings.max_image_bytes, "max_images": settings.max_images}
        facts = await aside(work_of(raw), lambda: read_facts(body, endpoint, **limits))
        self._account.note_facts(facts, body)
        check_ranges(body, endpoint)
        return JsonRequest(self._services, body, facts, self._wish(), size=len(raw))

    async def _receive_upload(self, receive: Receive, endpoint: str) -> Incoming:
        if self._is_upload():
            chunks = self._counted(receive_chunks(receive))
            upload = await read_upload(chunks, self._headers[b"content-type"], endpoint, self._storage())
            self._account.note_facts(upload.facts, {})
            return upload
        if not await discard_body(self._headers, receive):
            self._told = lambda: {"connection": "close"}
        raise UnsupportedMediaType(f"{endpoint} takes multipart/form-data with the fields file and model.")

    def _wish(self) -> str | None:
        """Return what the request's ``X-Rolecall-History`` asks for."""
        if _HISTORY not in self._headers:
            return None
        return wish_of(value.decode("latin-1") for key, value in self._scope["headers"] if key == _HISTORY)

    async def _counted(self, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        async for chunk in chunks:
            self._line.bytes_in += len(chunk)
            yield chunk

    # -- the answer

    async def _respond(self, incoming: Incoming) -> None:
        services, facts = self._services, incoming.facts
        target = self._caller.find(services.roster.resolve, facts.model)
        self._account.note_target([entry.name for entry in target.entries[:2]])
        self._line.role = target.role  # a fallback that is a role has its own
        if (experiments := services.experiments.defined) is not None:
            self._trial = enter(experiments, services, self._caller, self._account, target, facts.endpoint)
        streams = facts.stream and facts.endpoint in _STREAMING
        self._told = lambda: self._choice(target, incoming)
        dispatch = self._dispatch = Dispatch(services, self._caller, self._account, incoming, streams=streams)
        commentary = None
        if streams and services.settings.stream_loading_comments:
            commentary = Commentary(self._reply, dispatch.outlook, self._told)
        waiting = commentary.over if commentary else _silently
        relay = self._relay = Relay(
            services,
            self._reply,
            self._account,
            facts,
            waiting=waiting,
            headers=self._told,
        )
        try:
            try:
                response, lease = await waiting(self._send(dispatch, incoming, target))
            finally:
                self._line.truncate_history = incoming.left_out
            incoming.let_go()  # images are large and the answer may be long
            await relay.run(response, lease)
            if self._account.answer.prompt_tokens:
                incoming.learn(lease, self._account.answer.prompt_tokens)
        finally:
            await dispatch.give_back()

    async def _send(self, dispatch: Dispatch, incoming: Incoming, target: Target) -> tuple[UpstreamResponse, Lease]:
        if self._trial is not None:
            return await self._trial.send(dispatch, incoming, target)
        await incoming.settle(target)
        return await dispatch.send(target)

    def _choice(self, target: Target, incoming: Incoming) -> dict[str, str]:
        """Return what is known of the choice of the model and of changes to the request, as headers."""
        lease = self._account.lease
        name = lease.entry.name if lease else target.entries[0].name if len(target.entries) == 1 else None
        headers = dict(incoming.changes)
        if name is not None:
            headers["x-rolecall-model"] = _quoted(name)
        if (role := self._line.role) is not None:
            headers["x-rolecall-role"] = _quoted(role)
            if lease is not None:
                headers["x-rolecall-priority"] = f"{lease.entry.priorities.get(role, 0):g}"
        if self._trial is not None:
            headers["x-rolecall-experiment"] = self._trial.words
        if lease is not None and lease.memory is not None:
            headers[MEMORY_HEADER] = _quoted(lease.memory)
        return headers


def _silently(work: Awaitable[T]) -> Awaitable[T]:
    return work


@lru_cache(maxsize=1024)
def _quoted(name: str) -> str:
    return quote(name, safe="()/:@ =,")
