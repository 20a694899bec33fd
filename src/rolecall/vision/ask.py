"""One question to a model, through the whole of rolecall: over HTTP, or within the process that serves.

AskError                what the server answered instead: status, message, code, retry_after_s
└── Unreachable         there was no answer: nobody listens, or the connection broke
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

import httpx
import orjson

CHAT = "/v1/chat/completions"
PATIENCE_S = 300.0
"""How long a question waits in all, where the server says when to ask again."""
TIMEOUT = httpx.Timeout(600, connect=5, pool=None)
"""rolecall itself answers sooner, whatever happens: max_wait_s and backend_timeout_ms say when."""
_RETRIED = frozenset({429, 503})
_LONGEST_WORDS = 500


class AskError(Exception):
    """The question got no answer; ``status``, ``code`` and ``headers`` are the server's, ``status`` 0 if none came."""

    def __init__(
        self,
        message: str,
        *,
        status: int = 0,
        code: str = "",
        retry_after_s: float | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.headers = headers or {}
        self.message = message
        self.status = status
        self.code = code
        self.retry_after_s = retry_after_s

    @property
    def is_ours(self) -> bool:
        """Whether the question itself is wrong, so that another picture will fare no better with it.

        A key that is refused, a model that there is not, one that cannot see: what the next request would meet too.
        """
        return self.status in {401, 403, 404, 421, 501} or self.code in {"unsupported_input", "model_too_large"}


class Unreachable(AskError):
    """Nobody listens there, or the connection broke before the answer was whole."""


@dataclass(frozen=True, slots=True)
class Question:
    """A chat: ``model`` is a name or ``role:NAME``, ``messages`` and ``parameters`` go into the body as they are."""

    model: str
    messages: list[dict[str, Any]]
    parameters: Mapping[str, Any] = field(default_factory=dict)
    prompt_id: str | None = None
    prompt_version: str | None = None
    wants_logprobs: bool = False


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer. ``model`` is the registry's name of the model that served.

    ``usage`` is the engine's, ``cached_tokens`` the prompt's tokens that its cache served, where it tells.
    ``logprobs`` are those of the answer's tokens, natural logarithms, where they were asked for and came. ``headers``
    say what was decided: ``x-rolecall-role`` and others. ``ms`` is the time in all, waits included.
    """

    text: str
    model: str
    usage: Mapping[str, Any]
    finish_reason: str | None
    logprobs: tuple[float, ...] | None
    cached_tokens: int | None
    headers: Mapping[str, str]
    ms: float

    @property
    def request_id(self) -> str:
        """The id under which the request is in the log."""
        return self.headers.get("x-request-id", "")

    @property
    def is_cut(self) -> bool:
        """Whether the answer ended because it had as many tokens as it may."""
        return self.finish_reason == "length"

    @property
    def confidence(self) -> float | None:
        """The geometric mean of the tokens' probabilities; None where the engine gave none."""
        return confidence(self.logprobs)


def confidence(logprobs: tuple[float, ...] | None) -> float | None:
    """Return exp of the mean log-probability of an answer's tokens, 0 to 1; None if there are none."""
    if not logprobs:
        return None
    return min(1.0, math.exp(sum(logprobs) / len(logprobs)))


def logprobs_of(choice: Mapping[str, Any]) -> tuple[float, ...] | None:
    """Return the log-probabilities of a choice's tokens, as llama-server and vLLM give them for ``logprobs: true``.

    None where there are none: an engine may leave them out, or have null in their place.
    """
    given = choice.get("logprobs")
    content = given.get("content") if isinstance(given, dict) else None
    if not isinstance(content, list):
        return None
    values = [token.get("logprob") for token in content if isinstance(token, dict)]
    found = tuple(float(value) for value in values if isinstance(value, int | float) and value == value)  # noqa: PLR0124
    return found or None


Waiting = Callable[[AskError], AbstractAsyncContextManager[None]]


class Asker:
    """Sends questions with a client whose base URL is a rolecall; see ``in_process.client_of`` for the one within.

    429 and 503 that say when to ask again are waited for, less than ``patience_s`` for one question in all: with 0 they
    are errors like all others. ``waiting`` gives what is held during such a wait. A question that is cancelled closes
    its connection, which ends the engine's work.
    """

    def __init__(
        self, client: httpx.AsyncClient, *, patience_s: float = PATIENCE_S, waiting: Waiting = lambda _: nullcontext()
    ) -> None:
        self._client = client
        self._patience_s = patience_s
        self._waiting = waiting

    async def ask(self, question: Question) -> Reply:
        """Return the answer; raises ``AskError``."""
        started_at = time.monotonic()
        body = _body(question)
        headers = _headers(question)
        waited_s = 0.0
        while True:
            try:
                return _reply(await self._post(body, headers), time.monotonic() - started_at)
            except AskError as error:
                wait_s = error.retry_after_s
                if error.status not in _RETRIED or wait_s is None or waited_s + wait_s >= self._patience_s:
                    raise
                refused = error
            waited_s += wait_s
            async with self._waiting(refused):
                await asyncio.sleep(wait_s)

    async def _post(self, body: bytes, headers: dict[bytes, bytes]) -> httpx.Response:
        try:
            return await self._client.post(CHAT, content=body, headers=headers, timeout=TIMEOUT)
        except httpx.ConnectError as error:
            raise Unreachable(f"no rolecall at {self._client.base_url} ({error})", code="unreachable") from None
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            words = str(error) or type(error).__name__
            raise Unreachable(f"the connection to {self._client.base_url} broke: {words}", code="broken") from None


def _body(question: Question) -> bytes:
    body = {**question.parameters, "model": question.model, "messages": question.messages, "stream": False}
    if question.wants_logprobs:
        body["logprobs"] = True
    return orjson.dumps(body)


def _headers(question: Question) -> dict[bytes, bytes]:
    named = {b"x-prompt-id": question.prompt_id, b"x-prompt-version": question.prompt_version}
    headers = {name: value.encode("utf-8", "replace") for name, value in named.items() if value}
    return {b"content-type": b"application/json", **headers}


def _reply(response: httpx.Response, seconds: float) -> Reply:
    try:
        content = orjson.loads(response.content)
    except ValueError:
        content = None
    if response.status_code != httpx.codes.OK or not isinstance(content, dict) or content.get("error"):
        raise _error(response, content)
    try:
        choice = content["choices"][0]
        text = choice["message"].get("content")
    except (LookupError, TypeError, AttributeError):
        raise AskError("the answer is no chat completion", status=response.status_code, code="rubbish_answer") from None
    told = content.get("usage")
    usage: dict[str, Any] = told if isinstance(told, dict) else {}
    headers = dict(response.headers)
    return Reply(
        text=text if isinstance(text, str) else "",
        model=unquote(headers.get("x-rolecall-model", "")) or str(content.get("model") or ""),
        usage=usage,
        finish_reason=choice.get("finish_reason"),
        logprobs=logprobs_of(choice),
        cached_tokens=_cached(usage),
        headers=headers,
        ms=round(seconds * 1000, 3),
    )


def _cached(usage: Mapping[str, Any]) -> int | None:
    details = usage.get("prompt_tokens_details")
    found = details.get("cached_tokens") if isinstance(details, dict) else None
    return found if isinstance(found, int) else None


def _error(response: httpx.Response, content: Any) -> AskError:
    told = content.get("error") if isinstance(content, dict) else None
    told = told if isinstance(told, dict) else {}
    status = response.status_code
    message = told.get("message") or f"the server answered {status} without a word of explanation"
    return AskError(
        str(message)[:_LONGEST_WORDS],
        status=status,
        code=str(told.get("code") or ""),
        retry_after_s=_seconds(response.headers.get("retry-after")),
        headers=dict(response.headers),
    )


def _seconds(header: str | None) -> float | None:
    try:
        seconds = float(header or "")
    except ValueError:
        return None
    return seconds if 0 <= seconds < math.inf else None
