"""From the head of an engine's answer to the last byte that the client gets."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from typing import Any

import orjson

from rolecall.core.answer_shape import AnswerShape, reasoning_form, starts_in_thought
from rolecall.core.endpoints import EMBEDDINGS, HEARING, MESSAGES, RESPONSES
from rolecall.core.engine_errors import Asked, read_error
from rolecall.core.large_answer import is_object, usage_of
from rolecall.core.sse import StreamWatch
from rolecall.core.transforms import GENERATING, RequestFacts
from rolecall.errors import RolecallError, UpstreamError
from rolecall.gateway.account import Account
from rolecall.gateway.body import parse_answer
from rolecall.gateway.reply import EVENT_STREAM, Reply, as_stream
from rolecall.gateway.services import Services
from rolecall.gateway.upstream import UpstreamResponse
from rolecall.runtime.lease import Lease

_CUT = (None, "abort")
"""Finish reasons of an answer that its engine cut, though it ended the stream as if nothing were wrong (vLLM does)."""

_FINISHING = GENERATING | {RESPONSES, MESSAGES}
"""The endpoints whose streams say that they are finished."""

_NOT_JSON_ALONE = frozenset({*HEARING, EMBEDDINGS})
"""The endpoints whose answers may be sound, subtitles, plain text or bytes."""

_LARGE_BYTES = 2**20
"""What is larger is not parsed if nobody needs more of it than its usage."""

_MAX_ERROR_BYTES = 4 * 2**20
"""What an error answer has beyond that is not read."""

_LONGEST_WAIT_S = 86_400.0
_NO_STREAM = "The engine gave a whole answer that fits into no stream, though one was asked for."

_PASSED_HEADERS = frozenset(
    {"content-type", "content-encoding", "cache-control", "retry-after", "openai-processing-ms"}
)


class Relay:
    """Passes one answer on; ``is_delivered`` once the client has all that matters of it.

    ``waiting`` does what the client has to wait for. ``headers`` are rolecall's own, as they are known in the end.
    """

    def __init__(  # noqa: PLR0913 - the parts of one exchange
        self,
        services: Services,
        reply: Reply,
        account: Account,
        facts: RequestFacts,
        *,
        waiting: Callable[[Coroutine[Any, Any, Any]], Awaitable[Any]],
        headers: Callable[[], Mapping[str, str]],
    ) -> None:
        self._services, self._settings = services, services.settings
        self._reply = reply
        self._account = account
        self._answer, self._line = account.answer, account.line
        self._facts = facts
        self._waiting = waiting
        self._headers = headers
        self.is_delivered = False

    async def run(self, response: UpstreamResponse, lease: Lease) -> None:
        """Pass the answer on; raises ``UpstreamError`` for what is none, or ends too early."""
        if not (200 <= response.status < 300 or 400 <= response.status < 600):
            raise UpstreamError(f"The engine answered with the status {response.status}, which is no answer.")
        # An engine that compresses although it was asked not to: its answer passes unread, and therefore whole.
        is_plain = response.headers.get("content-encoding", "identity") == "identity"
        if response.status >= 400:
            body = await self._waiting(self._read(response, lease, _MAX_ERROR_BYTES))
            raise self._refusal(response, b"".join(body) if is_plain else b"", lease)
        if is_plain and response.headers.get("content-type", "").startswith(EVENT_STREAM):
            await self._stream(response, lease)
        elif is_plain and not self._is_json(response):
            await self._pass(response, lease)
        else:
            await self._whole(response, lease, is_plain=is_plain)

    async def _stream(self, response: UpstreamResponse, lease: Lease) -> None:
        """Pass the events on as they come."""
        watch = StreamWatch(self._answer, hide_usage=self._facts.hides_usage, rewriter=self._shape(lease))
        self._line.status = response.status
        await self._reply.start(response.status, self._response_headers(response))
        if self._reply.promised is not None:
            await self._tell_late(self._reply.promised)
        rest = await self._pump(response, lease, watch) + watch.close()
        if self._facts.endpoint in _FINISHING and not self._answer.is_complete:
            await self._reply.body(rest)
            raise UpstreamError("The engine ended its answer without finishing it.")
        if self._facts.endpoint in GENERATING and self._answer.error:
            await self._reply.body(rest)
            return  # without a proper end, as after every error within a stream
        if self._facts.endpoint in GENERATING and self._answer.finish_reason in _CUT:
            self._line.error = "engine_error: the engine ended its answer without finishing it"
        response.leave()
        await self._reply.body(rest, more=False)
        self.is_delivered = True

    async def _pump(self, response: UpstreamResponse, lease: Lease, watch: StreamWatch) -> bytes:
        """Have the parts of a stream passed on, where they come in; return that with the last mark, if it has one.

        This task sleeps meanwhile. It is woken after the first part, for which the client was told to wait, when the
        client takes no more, and at the end.
        """
        reply, answer = self._reply, self._answer
        has_begun = has_output = False
        last = b""

        def take(part: bytes) -> bool:
            nonlocal has_output, last
            lease.touch()
            passed = watch.feed(part)
            if not has_output and answer.has_output:
                has_output = True
                self._account.note_output()
            if answer.is_over:
                last = passed  # to go on together with the end
                return False
            takes_more = reply.part(passed) if passed else True
            # Many clients close at the last mark, without waiting for the end of the HTTP answer.
            self.is_delivered = answer.is_complete
            return takes_more and has_begun

        idle_s = self._settings.stream_idle_timeout_ms / 1000
        has_ended = await self._waiting(response.pipe(take, idle_s))
        has_begun = True
        while not (has_ended or answer.is_over):
            await reply.drain()
            has_ended = await response.pipe(take, idle_s)
        return last

    async def _tell_late(self, promised: Mapping[str, str]) -> None:
        """Tell in comments what was not known yet when a stream that waits was given its head."""
        late = [f": {name}: {value}\n" for name, value in self._headers().items() if promised.get(name) != value]
        if late:
            await self._reply.body(f"{''.join(late)}\n".encode())

    async def _whole(self, response: UpstreamResponse, lease: Lease, *, is_plain: bool) -> None:
        """Pass a whole answer on once it is complete, so that one that was cut, or is none, becomes a clean error."""
        come = response.at_hand()
        parts = [come] if come is not None else await self._waiting(self._read(response, lease))
        shape = self._shape(lease)
        if is_plain and self._may_pass_unread(parts, shape):
            self._answer.read({"usage": usage_of(parts)})
            await self._pass_parts(response, parts)
            return
        body = parts[0] if len(parts) == 1 else b"".join(parts)
        said = parse_answer(response.status, body) if is_plain else None
        self._answer.read(said)
        self._line.status = response.status
        if self._reply.has_head:
            await self._pass_into_stream(response.status, shape.whole(said))
        else:
            await self._reply.whole(response.status, self._response_headers(response), shape.whole_bytes(body, said))
        self.is_delivered = True

    def _is_json(self, response: UpstreamResponse) -> bool:
        """Whether the answer is to be read as JSON; a web page is no answer anywhere, but something's error."""
        if self._facts.endpoint not in _NOT_JSON_ALONE:
            return True
        kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
        return kind == "text/html" or kind.removeprefix("application/").endswith("json")

    async def _pass(self, response: UpstreamResponse, lease: Lease) -> None:
        """Pass on what is no JSON, unread, as it comes; one that breaks off later is not ended properly."""
        if self._reply.has_head:
            raise UpstreamError(_NO_STREAM)
        chunks = response.chunks(self._settings.backend_timeout_ms / 1000)
        chunk = await self._waiting(_next(chunks))
        if self._reply.has_head:  # it waited for the first bytes
            raise UpstreamError(_NO_STREAM)
        length = response.headers.get("content-length")
        sized = {} if length is None else {"content-length": length}
        self._line.status = response.status
        await self._reply.start(response.status, self._response_headers(response) | sized)
        while chunk is not None:
            lease.touch()
            await self._reply.body(chunk)
            self.is_delivered = str(self._reply.bytes_out) == length
            chunk = await _next(chunks)
        await self._reply.body(b"", more=False)
        self.is_delivered = True

    def _may_pass_unread(self, parts: Sequence[bytes], shape: AnswerShape) -> bool:
        """Whether a whole answer is large, and neither its form nor the log asks for more of it than its usage."""
        if sum(map(len, parts)) <= _LARGE_BYTES:
            return False
        is_wanted = shape.changes_whole or self._answer.keeps_text or self._reply.has_head
        return not is_wanted and is_object(parts)

    async def _pass_parts(self, response: UpstreamResponse, parts: Sequence[bytes]) -> None:
        self._line.status = response.status
        length = {"content-length": str(sum(map(len, parts)))}
        await self._reply.start(response.status, self._response_headers(response) | length)
        for left, part in zip(range(len(parts) - 1, -1, -1), parts, strict=True):
            await self._reply.body(part, more=left > 0)
        self.is_delivered = True

    def _shape(self, lease: Lease) -> AnswerShape:
        traits = self._services.roster.traits(lease.entry)
        form = reasoning_form(self._settings.reasoning_field, lease.entry, thinks=traits.thinks)
        opens = form != "as_is" and starts_in_thought(lease.entry, template_opens=traits.starts_in_thought)
        return AnswerShape(self._asked(lease), form, starts_in_thought=opens, backend=lease.entry.backend)

    def _asked(self, lease: Lease) -> Asked:
        return Asked(self._facts.endpoint, lease.entry.name, self._facts.media)

    def _refusal(self, response: UpstreamResponse, body: bytes, lease: Lease) -> RolecallError:
        """Return what an engine's error answer means for the client."""
        try:
            said = orjson.loads(body)
        except orjson.JSONDecodeError:
            said = body.decode(errors="replace")
        after = response.headers.get("retry-after", "")
        wait_s = min(float(after), _LONGEST_WAIT_S) if after.isdecimal() else None
        return read_error(response.status, said, self._asked(lease), retry_after_s=wait_s)

    async def _read(self, response: UpstreamResponse, lease: Lease, limit: float = math.inf) -> list[bytes]:
        """Return the body in its parts, up to the one with which it has more than ``limit`` bytes."""
        parts: list[bytes] = []
        size = 0
        async for chunk in response.chunks(self._settings.backend_timeout_ms / 1000):
            lease.touch()
            parts.append(chunk)
            size += len(chunk)
            if size > limit:
                break
        return parts

    async def _pass_into_stream(self, status: int, said: Any) -> None:
        """Pass a whole answer on to a client whose stream has begun while it waited."""
        chunk = as_stream(said) if self._facts.endpoint in GENERATING else None
        if chunk is None:
            raise UpstreamError(_NO_STREAM)
        await self._reply.start(status, {})
        await self._reply.body(chunk, more=False)

    def _response_headers(self, response: UpstreamResponse) -> dict[str, str]:
        headers = {name: value for name, value in response.headers.items() if name in _PASSED_HEADERS}
        headers.update(self._headers())
        return headers


async def _next(chunks: AsyncIterator[bytes]) -> bytes | None:
    return await anext(chunks, None)
