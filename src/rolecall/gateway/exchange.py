"""One inference request from its first byte to its line in the log."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import TypeVar
from urllib.parse import quote

import anyio
from starlette.types import Receive, Scope, Send

from rolecall.core.catalog import Target
from rolecall.core.endpoints import MESSAGES, RESPONSES, UPLOADS
from rolecall.core.history import HEADER as HISTORY_HEADER
from rolecall.core.history import wish_of
from rolecall.core.ranges import check_counts, check_ranges
from rolecall.core.transforms import GENERATING, read_facts
from rolecall.errors import RolecallError, ShuttingDown, UnsupportedMediaType
from rolecall.gateway.account import Account
from rolecall.gateway.body import (
    ClientGone,
    aside,
    discard_body,
    read_json,
    receive_body,
    receive_chunks,
    wait_until_gone,
)
from rolecall.gateway.caller import caller_of
from rolecall.gateway.comments import Commentary
from rolecall.gateway.dispatch import Dispatch
from rolecall.gateway.incoming import Incoming
from rolecall.gateway.pipeline import JsonRequest
from rolecall.gateway.relay import Relay
from rolecall.gateway.reply import Reply
from rolecall.gateway.services import Services
from rolecall.gateway.uploads import Storage, is_upload, read_upload
from rolecall.gateway.upstream import UpstreamResponse
from rolecall.runtime.lease import Lease

T = TypeVar("T")

log = logging.getLogger(__name__)

CLIENT_GONE = 499
"""nginx's status for a client that closed its connection; it is never sent, only logged."""

LAST_WORDS_S = 1.0
"""How long an answer that is ended at shutdown waits for its client to take the error."""

_STREAMING = GENERATING | UPLOADS | {RESPONSES, MESSAGES}
"""The endpoints that answer ``stream: true`` with server-sent events."""


class Exchange:
    """Receives, routes, forwards, relays and records one request.

    Two tasks: one answers, one watches for the client's leaving, which ends the first at once and with it the engine's
    work. Lease and line are given back in ``finally`` blocks of their own, so that no cancellation can skip them.
    """

    def __init__(self, services: Services, scope: Scope, send: Send) -> None:
        self._services = services
        self._scope = scope
        self._relay: Relay | None = None
        self._incoming: Incoming | None = None
        self._told: Callable[[], Mapping[str, str]] = dict
        self._receiving = anyio.CancelScope()
        self._answering: asyncio.Task[None] | None = None
        self.request_id = new_request_id()
        self._reply = Reply(send, self.request_id, services.settings.stream_idle_timeout_ms / 1000, scope["path"])
        self._storage = Storage(services.settings.state_dir, services.settings.max_upload_bytes)
        self._account = Account(scope, self.request_id, keeps_prompts=services.settings.log_prompts)
        self._line = self._account.line
        self._caller = caller_of(scope)
        self._line.key = self._caller.name

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
            if self._relay is None or not self._relay.is_delivered:
                self._line.status = CLIENT_GONE
                self._line.error = f"client_gone: {gone}"
        except asyncio.CancelledError:
            self._note(ShuttingDown())
            raise
        finally:
            profile = self._services.roster.active.profile.name
            self._services.recorder.record(self._account.close(profile, self._reply.bytes_out))
            self._caller.spend(self._account.tokens(self._estimated_prompt))

    def _estimated_prompt(self, lease: Lease) -> float:
        return 0 if self._incoming is None else self._incoming.estimate(lease)

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
        await self._reply.fail(error, self._told())

    async def _serve(self, receive: Receive) -> None:
        with self._receiving:
            await self._admit(receive)
            self._incoming = await self._receive(receive)
        incoming = self._incoming
        if incoming is None:
            raise ShuttingDown
        answering = self._answering = asyncio.create_task(self._respond(incoming))
        watching = asyncio.create_task(wait_until_gone(receive))
        try:
            await asyncio.wait({answering, watching}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            left = watching.done() and not answering.done()
            watching.cancel()
            answering.cancel()
            await asyncio.wait({answering})
            incoming.let_go()
        failure = None if answering.cancelled() else answering.exception()
        if left:
            raise ClientGone
        if answering.cancelled():
            raise ShuttingDown
        if failure is not None:
            raise failure

    async def _admit(self, receive: Receive) -> None:
        """Raise ``RateLimited`` and ``DiskFull`` before anything of the body is kept or read into objects.

        Most clients look for an answer only after they have sent everything, so the body is thrown away first.
        """
        headers = dict(self._scope["headers"])
        try:
            self._caller.begin()
            if self._is_upload(headers):
                await self._storage.check_room()
        except RolecallError:
            if not await discard_body(headers, receive):
                self._told = lambda: {"connection": "close"}
            raise

    def _is_upload(self, headers: Mapping[bytes, bytes]) -> bool:
        return self._scope["path"] in UPLOADS and is_upload(headers)

    async def _receive(self, receive: Receive) -> Incoming:
        """Return the request, whole; raises ``BadRequest`` and ``ClientGone``."""
        settings, headers = self._services.settings, dict(self._scope["headers"])
        endpoint = self._scope["path"]
        if self._is_upload(headers):
            chunks = self._counted(receive_chunks(receive))
            upload = await read_upload(chunks, headers[b"content-type"], endpoint, self._storage)
            self._account.note_facts(upload.facts, {})
            return upload
        if endpoint in UPLOADS:
            if not await discard_body(headers, receive):
                self._told = lambda: {"connection": "close"}
            raise UnsupportedMediaType(f"{endpoint} takes multipart/form-data with the fields file and model.")
        raw = await receive_body(self._scope, receive, settings.max_body_bytes)
        self._line.bytes_in = len(raw)
        body = await read_json(raw)
        if isinstance(body, dict):
            check_counts(body, settings.max_messages)
        limits = {"max_image_bytes": settings.max_image_bytes, "max_images": settings.max_images}
        facts = await aside(len(raw), lambda: read_facts(body, endpoint, **limits))
        self._account.note_facts(facts, body)
        check_ranges(body, endpoint)
        name = HISTORY_HEADER.encode()
        wish = wish_of(value.decode("latin-1") for key, value in self._scope["headers"] if key == name)
        return JsonRequest(self._services, body, facts, wish, size=len(raw))

    async def _counted(self, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        async for chunk in chunks:
            self._line.bytes_in += len(chunk)
            yield chunk

    # -- the answering task

    async def _respond(self, incoming: Incoming) -> None:
        services, facts = self._services, incoming.facts
        target = self._caller.find(services.roster.resolve, facts.model)
        self._line.role = target.role  # a fallback that is a role has its own
        streams = facts.stream and facts.endpoint in _STREAMING
        self._told = lambda: self._headers(target, incoming)
        dispatch = Dispatch(services, self._caller, self._account, incoming, streams=streams)
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
        async with contextlib.AsyncExitStack() as held:
            try:
                response, lease = await waiting(self._send(dispatch, incoming, target, held))
            finally:
                self._line.truncate_history = incoming.left_out
            incoming.let_go()  # images are large and the answer may be long
            await relay.run(response, lease)
            if self._account.answer.prompt_tokens:
                incoming.learn(lease, self._account.answer.prompt_tokens)

    async def _send(
        self, dispatch: Dispatch, incoming: Incoming, target: Target, held: contextlib.AsyncExitStack
    ) -> tuple[UpstreamResponse, Lease]:
        await incoming.settle(target)
        return await dispatch.send(target, held)

    def _headers(self, target: Target, incoming: Incoming) -> dict[str, str]:
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
        return headers


async def _silently(work: Awaitable[T]) -> T:
    return await work


def _quoted(name: str) -> str:
    return quote(name, safe="()/:@ ")


def new_request_id() -> str:
    """Return an id for ``x-request-id`` and the log."""
    return "req_" + uuid.uuid4().hex
