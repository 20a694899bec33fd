"""What a single request is counted and logged as, where none of its questions is.

Each question within counts, and has its line, as at `/v1`. A request that is refused before any was asked counts once,
and has a line of its own.
"""

from __future__ import annotations

import time

from starlette.requests import Request

from rolecall.core.catalog import Target
from rolecall.core.keys import Scope
from rolecall.core.models import ModelEntry
from rolecall.errors import BodyTooLarge, RolecallError
from rolecall.gateway.body import ClientGone, discard_body
from rolecall.gateway.caller import Caller, Resolve, caller_of
from rolecall.gateway.exchange import CLIENT_GONE
from rolecall.gateway.header_text import header_text
from rolecall.gateway.recorder import Recorder, RequestLine, timestamp
from rolecall.gateway.request_id import new_request_id
from rolecall.gateway.routes import Json
from rolecall.vision.single_input import Input, read_input


class Paid:
    """A caller whose first question has been counted already, before anything of the request was read."""

    def __init__(self, caller: Caller) -> None:
        """Raises ``RateLimited`` for one too many."""
        caller.begin()
        self._caller = caller
        self._is_paid = True

    @property
    def name(self) -> str | None:
        """The key's name."""
        return self._caller.name

    def may(self, scope: Scope) -> bool:
        """Whether the caller has a scope."""
        return self._caller.may(scope)

    def check(self, target: Target) -> Target:
        """Return the target with what the caller may use."""
        return self._caller.check(target)

    def find(self, resolve: Resolve, name: str) -> Target:
        """Return what of a name the caller may use."""
        return self._caller.find(resolve, name)

    def sees(self, entry: ModelEntry) -> bool:
        """Whether the caller's list of models has the entry."""
        return self._caller.sees(entry)

    def begin(self) -> None:
        """Count a further question."""
        if not self._is_paid:
            self._caller.begin()
        self._is_paid = False

    def spend(self, tokens: int) -> None:
        """Count the tokens of an answer."""
        self._caller.spend(tokens)


class Refusal:
    """Lets a request in, or refuses it with a line of its own; ``request_id`` is that of the answer then."""

    def __init__(self, request: Request, recorder: Recorder) -> None:
        self._request = request
        self._recorder = recorder
        self._request_id = new_request_id()
        self._began = time.monotonic()
        address = request.scope.get("client")
        agent = header_text(dict(request.scope["headers"]), b"user-agent") or ""
        client = f"{address[0] if address else 'unknown'} {agent[:100]}".strip()
        self._line = RequestLine.begun(timestamp(time.time()), self._request_id, request.scope["path"], client)
        self._line.key = caller_of(request.scope).name
        self._headers: dict[str, str] = {}

    async def paid(self) -> Paid:
        """Count the request; raises ``RateLimited`` once its body is thrown away: few clients listen before."""
        try:
            return Paid(caller_of(self._request.scope))
        except RolecallError:
            if not await discard_body(dict(self._request.scope["headers"]), self._request.receive):
                self._headers = {"connection": "close"}
            raise

    async def read(self, max_bytes: int, *, form_only: bool) -> Input:
        """Return what came; raises as ``read_input`` does, with a line where the client left."""
        try:
            return await read_input(self._request, max_bytes, form_only=form_only)
        except ClientGone as gone:
            self._record(CLIENT_GONE, f"client_gone: {gone}")
            raise

    def answer(self, error: RolecallError) -> Json:
        """Return the answer that refuses it, and write the line."""
        self._record(error.status, error.summary(discreetly=True))
        headers = {**self._headers, **error.headers(), "x-request-id": self._request_id}
        if isinstance(error, BodyTooLarge):  # what is left of the body may be taken for the next request
            headers["connection"] = "close"
        return Json(error.body(), error.status, headers)

    def _record(self, status: int, error: str) -> None:
        self._line.status, self._line.error = status, error
        self._line.duration_ms = round((time.monotonic() - self._began) * 1000, 3)
        self._recorder.record(self._line.as_dict())
